"""The local contrastive loss has the global one's value and, of its gradient, what stays in a part."""

import pytest
import torch

from flava_ds.objectives.base import Features
from flava_ds.objectives.global_contrastive import GlobalContrastive, GlobalContrastiveConfig
from flava_ds.objectives.local_contrastive import LocalContrastive, LocalContrastiveConfig


def features(rows=6, width=5):
    """Makes leaves of unit length, with one sample whose caption is another's."""
    draw = torch.Generator().manual_seed(0)
    sides = [
        torch.nn.functional.normalize(torch.randn(rows, width, generator=draw, dtype=torch.float64), dim=1)
        for _ in range(2)
    ]
    image, text = (side.requires_grad_() for side in sides)
    scale = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    matched = torch.tensor([1.0, 1, 0, 1, 1, 1], dtype=torch.float64)
    return Features({"image": image, "text": text}, {"log_scale": scale}, {"matched": matched})


def gradients(objective, found):
    """Returns the loss, and its gradients for images, texts and scale."""
    loss, metrics = objective.pooled_loss(found)
    leaves = [*found.samples.values(), *found.shared.values()]
    return loss.detach(), torch.autograd.grad(loss, leaves), metrics["correct"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_part_is_the_global_loss(smoothing):
    ours = gradients(LocalContrastive(LocalContrastiveConfig(label_smoothing=smoothing)), features())
    theirs = gradients(GlobalContrastive(GlobalContrastiveConfig(label_smoothing=smoothing)), features())
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])
    assert ours[2] == theirs[2]


def test_parts_lose_the_gradient_for_each_other():
    found = features()
    objective = LocalContrastive(LocalContrastiveConfig(parts_of_a_rank=3))
    loss, (image, text, scale), correct = gradients(objective, found)
    whole, (_, _, whole_scale), whole_correct = gradients(GlobalContrastive(GlobalContrastiveConfig()), found)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(scale, whole_scale)
    assert correct == whole_correct
    # By hand: what one rank of three has, when the others' features are constants.
    own, matched = slice(2, 4), found.constants["matched"]
    images, texts = (found.samples[name].detach().clone() for name in ("image", "text"))
    ours_i, ours_t = images[own].requires_grad_(), texts[own].requires_grad_()
    images, texts = torch.cat([images[:2], ours_i, images[4:]]), torch.cat([texts[:2], ours_t, texts[4:]])
    factor = found.shared["log_scale"].detach().exp()
    total = 0.0
    for rows, keys in ((ours_i, texts), (ours_t, images)):
        log_shares = (factor * rows @ keys.T).log_softmax(1)
        total = total - sum(matched[i] * log_shares[i - 2, i] for i in (2, 3)) / 2
    expected = torch.autograd.grad(total, [ours_i, ours_t])
    torch.testing.assert_close((image[own], text[own]), expected)
