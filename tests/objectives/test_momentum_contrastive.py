"""The contrastive loss with soft targets by hand, and the queue over steps, ranks and skipped updates."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from flava_ds import config as configuration
from flava_ds.batch import Batch
from flava_ds.errors import ConfigError
from flava_ds.layers.transformer import clamped
from flava_ds.objectives.momentum_contrastive import (
    COLDEST,
    HOTTEST,
    FeatureQueue,
    MomentumContrastiveConfig,
    grown,
    soft_contrast,
)
from flava_ds.recipes import RECIPES


def test_the_loss_of_two_pairs_by_hand():
    """Scores of 1 and 0, divided by 0.5; the teacher's are the same, so its shares are as e^2 to 1."""
    rows, columns = torch.eye(2).double() / 0.5, torch.eye(2).double()
    right = math.exp(2) / (math.exp(2) + 1)
    hard = -math.log(right)
    soft = -right * math.log(right) - (1 - right) * math.log(1 - right)
    for share in (0.0, 0.4, 1.0):
        loss, correct = soft_contrast(rows, columns, torch.tensor([0, 1]), rows, share)
        assert float(loss) == pytest.approx(2 * ((1 - share) * hard + share * soft), rel=1e-12)
        assert float(correct) == 2


def test_equals_cross_entropy_with_probabilities_as_targets():
    torch.manual_seed(0)
    rows, columns, teacher = (F.normalize(torch.randn(n, 8, dtype=torch.float64), dim=-1) for n in (3, 9, 9))
    rows, teacher, own = rows / 0.07, teacher / 0.07, torch.tensor([4, 0, 7])
    rows.requires_grad_()
    targets = 0.3 * (teacher[own] @ columns.T).softmax(-1) + 0.7 * F.one_hot(own, 9)
    expected = F.cross_entropy(rows @ columns.T, targets, reduction="sum")
    loss, _ = soft_contrast(rows, columns, own, teacher, 0.3)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(expected, rows)
    torch.testing.assert_close(torch.autograd.grad(loss, rows)[0], gradient)


def test_pairs_that_show_the_same_share_the_target():
    """Rows 0 and 1 show the same as columns 0 to 2; cross-entropy with these shares, and all three right."""
    torch.manual_seed(0)
    rows, columns = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    shown = torch.tensor([7, 7, 7, 8, -1])
    own = torch.tensor([0, 1, 3])
    same = shown[own][:, None] == shown
    targets = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0, 0]] * 2 + [[0, 0, 0, 1, 0]]).double()
    loss, correct = soft_contrast(rows, columns, own, columns, 0.0, same)
    torch.testing.assert_close(
        loss, F.cross_entropy(rows @ columns.T, targets, reduction="sum"), rtol=1e-6, atol=0
    )
    best = (rows @ columns.T).argmax(1)
    assert correct == sum(int(same[row, column]) for row, column in enumerate(best.tolist()))


def test_the_teacher_s_share_grows_and_the_temperature_is_clamped_with_a_gradient():
    assert [grown(0.4, 10, step) for step in (0, 5, 10, 99)] == [0.0, 0.2, 0.4, 0.4] and grown(
        0.4, 0, 0
    ) == 0.4
    for value, kept in ((0.07, 0.07), (0.0, 0.001), (2.0, 0.5)):
        temperature = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        found = clamped(temperature, HOTTEST, COLDEST)
        assert found.item() == kept
        found.backward()
        assert temperature.grad.item() == 1


def step_of(queue: FeatureQueue, number: int, parts: int) -> list[Batch]:
    """Four samples whose features are their number, as `parts` micro-batches."""
    rows = torch.arange(4 * number, 4 * number + 4.0)[:, None].expand(4, 2)
    batches = [
        Batch(
            kind="pair",
            source="x",
            size=4 // parts,
            tensors={
                "cu_seqlens": torch.zeros(4 // parts + 1),
                "teacher_image": own,
                "teacher_text": -own,
                "identities": own[:, 0].long(),
            },
        )
        for own in rows.chunk(parts)
    ]
    return queue.complete_step(batches)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_queue_keeps_the_latest_pairs_and_every_micro_batch_sees_the_step(parts):
    queue = FeatureQueue(8, 2, identities=True)
    assert FeatureQueue(8, 2).tensors().keys() == queue.tensors().keys() - {"identities"}
    torch.testing.assert_close(queue.images.norm(dim=-1), torch.ones(8))
    engine = SimpleNamespace(applied=torch.ones(()))
    for number in range(3):
        before = queue.images.clone()
        batches = step_of(queue, number, parts)
        own = torch.cat([batch["contrast_images"][batch["contrast_own"], 0] for batch in batches])
        assert own.tolist() == [4 * number + k for k in range(4)]
        for batch in batches:
            assert torch.equal(batch["contrast_images"][4:], before)
            assert batch["contrast_texts"][:4, 0].tolist() == [-(4 * number + k) for k in range(4)]
            assert batch["contrast_identities"][:4].tolist() == [4 * number + k for k in range(4)]
            assert number or (batch["contrast_identities"][4:] < 0).all()
        queue.after_update(number, engine, {})
    assert queue.images[:, 0].tolist() == [8, 9, 10, 11, 4, 5, 6, 7], "the third step replaces the first"
    assert torch.equal(queue.texts, -queue.images) and queue.place.tolist() == [4]
    assert torch.equal(queue.identities, queue.images[:, 0].long())
    queue.after_update(3, engine, {})
    assert queue.place.tolist() == [4], "a step without its batches adds nothing"


def test_a_queue_that_the_step_does_not_divide_and_a_second_one_are_one_line():
    config = RECIPES["demo_albef"]()
    itc = dataclasses.replace(config.objectives["itc"], queue_size=2000)
    wrong = dataclasses.replace(config, objectives=config.objectives | {"itc": itc})
    with pytest.raises(ConfigError, match="objectives.itc.queue_size 2000 .* 64 pairs .* 1984 or 2048"):
        configuration.check(wrong)
    both = {"itc": config.objectives["itc"], "more": MomentumContrastiveConfig(queue_size=64)}
    with pytest.raises(ConfigError, match="objectives.itc and objectives.more each have a queue"):
        configuration.check(dataclasses.replace(config, objectives=both))
    for other in ("clip_base", "demo_vilt"):
        config = RECIPES[other]()
        wrong = dataclasses.replace(config, objectives={"itc": MomentumContrastiveConfig(queue_size=0)})
        with pytest.raises(ConfigError, match="objectives.itc needs a model with `teacher`"):
            configuration.check(wrong)


def test_sources_that_tell_what_is_shown_are_checked():
    config = RECIPES["demo_albef"]()
    told = dataclasses.replace(config.data.sources["pair"], identity_key="concept")
    data = dataclasses.replace(config.data, sources={"pair": told})
    task = configuration.check(dataclasses.replace(config, data=data)).model.plan
    assert task(dataclasses.replace(config, data=data), told).identities
    more = {"pair": told, "other": dataclasses.replace(told, identity_key=None, seed=9)}
    mixed = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=more))
    with pytest.raises(ConfigError, match="source 'other': .* set --data.sources.other.identity-key, too"):
        configuration.check(mixed)
    with pytest.raises(ConfigError, match="family 'clip' reads no identities of its pair samples"):
        configuration.check(dataclasses.replace(RECIPES["demo_clip"](), data=data))
