"""The sigmoid contrastive loss and its gradients are those of the whole matrix, which it never holds."""

import pytest
import torch
import torch.nn.functional as F

from flava_ds.objectives import sigmoid_contrastive
from flava_ds.objectives.base import Features
from flava_ds.objectives.sigmoid_contrastive import SigmoidContrastive, SigmoidContrastiveConfig

MISMATCHED = 2


def features(rows=7, width=5, bias=-2.0):
    """Makes leaves of unit length, with one sample whose caption is another's."""
    draw = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(rows, width, generator=draw, dtype=torch.float64), dim=1).requires_grad_()
        for _ in range(2)
    )
    scale, bias = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (2.3026, bias))
    matched = torch.ones(rows).index_fill(0, torch.tensor([MISMATCHED]), 0.0)
    return Features(
        {"image": image, "text": text}, {"log_scale": scale, "logit_bias": bias}, {"matched": matched}
    )


def leaves(found):
    return [*found.samples.values(), *found.shared.values()]


def definition(found):
    """Algorithm 1 with the full matrix of all images and matched texts; own texts that are ranked first."""
    image, text = found.samples["image"], found.samples["text"]
    logits = found.shared["log_scale"].exp() * image @ text.T + found.shared["logit_bias"]
    labels, matched = 2 * torch.eye(len(image)) - 1, found.constants["matched"].bool()
    loss = -F.logsigmoid(labels * logits)[:, matched].sum()
    return loss, (logits.argmax(1) == torch.arange(len(image)))[matched].sum()


@pytest.mark.parametrize("rows_of_chunk", [7, 3, 1])
@pytest.mark.parametrize("bias", [-10.0, -2.0, 30.0])
def test_loss_and_gradients_are_those_of_the_definition(monkeypatch, rows_of_chunk, bias):
    monkeypatch.setattr(sigmoid_contrastive, "CHUNK_BYTES", rows_of_chunk * 7 * 8)
    found, theirs = features(bias=bias), features(bias=bias)
    loss, metrics = SigmoidContrastive(SigmoidContrastiveConfig()).pooled_loss(found)
    expected, correct = definition(theirs)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    ours = torch.autograd.grad(loss * 3, leaves(found))
    wanted = torch.autograd.grad(expected * 3, leaves(theirs))
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-13)
    assert metrics["correct"] == correct and 0 < correct < 7


def test_a_step_without_a_match_has_no_loss():
    found = features()
    found.constants["matched"].zero_()
    loss, metrics = SigmoidContrastive(SigmoidContrastiveConfig()).pooled_loss(found)
    assert loss == 0 and metrics["correct"] == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, leaves(found)))


def test_open_clip_agrees():
    losses = pytest.importorskip("open_clip").loss
    found, theirs = features(), features()
    found.constants["matched"].fill_(1.0)
    loss, _ = SigmoidContrastive(SigmoidContrastiveConfig()).pooled_loss(found)
    image, text, scale, bias = leaves(theirs)
    expected = losses.SigLipLoss()(image, text, scale.exp(), bias)
    torch.testing.assert_close(loss / 7, expected, rtol=1e-13, atol=1e-13)
    ours = torch.autograd.grad(loss / 7, leaves(found))
    torch.testing.assert_close(ours, torch.autograd.grad(expected, leaves(theirs)), rtol=1e-12, atol=1e-13)


def test_it_is_its_own_derivative():
    *values, matched = *leaves(features()), features().constants["matched"]

    def loss(image, text, log_scale, bias):
        found = Features(
            {"image": image, "text": text}, {"log_scale": log_scale, "logit_bias": bias}, {"matched": matched}
        )
        return SigmoidContrastive(SigmoidContrastiveConfig()).pooled_loss(found)[0]

    assert torch.autograd.gradcheck(loss, values)


def test_gradients_of_gradients_are_refused():
    found = features()
    loss, _ = SigmoidContrastive(SigmoidContrastiveConfig()).pooled_loss(found)
    [gradient] = torch.autograd.grad(loss, [found.samples["image"]], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
