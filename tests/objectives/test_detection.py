"""The set loss against transformers', over parts of a step, and for images without objects."""

import copy
import dataclasses
import itertools

import pytest
import torch
from families.bert.bert_peers import randomize
from families.unit.unit_toys import (
    ATTRIBUTES,
    CLASSES,
    OBJECTIVES,
    QUERIES,
    make_batch,
    source_of,
    tiny_config,
    tiny_model,
)

from flava_ds.config.checks import check_objectives
from flava_ds.errors import ConfigError
from flava_ds.layers.boxes import to_centres
from flava_ds.objectives.detection import DetectionConfig
from flava_ds.objectives.set_matching import Objects, match

LAYERS, WIDTH = 2, 24


@pytest.fixture(scope="module")
def objective():
    return randomize(OBJECTIVES["detection"].build(tiny_config()), std=0.5)


def hidden_of() -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(LAYERS * 4 * QUERIES, WIDTH, generator=draw)


def test_transformers_loss_agrees(objective):
    """Its classification loss and 5 L1 + 2 (1 - GIoU) of both layers, with gradients of the states."""
    theirs = pytest.importorskip("transformers.loss.loss_for_object_detection")
    batch = make_batch("detection")
    matcher = theirs.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = theirs.ImageLoss(matcher, CLASSES, eos_coef=0.1, losses=["labels", "boxes"])
    spans = itertools.pairwise(batch["target_cu_seqlens"].tolist())
    boxes = to_centres(batch["target_boxes"])
    targets = [{"class_labels": batch["target_labels"][a:b], "boxes": boxes[a:b]} for a, b in spans]
    found = []
    for ours in (True, False):
        hidden = hidden_of().requires_grad_()
        if ours:
            loss = objective(None, {"detection": hidden}, batch)
            total = loss.sum / loss.count
        else:
            logits, placed = objective.predict(hidden, 4)
            parts = [
                criterion({"logits": own, "pred_boxes": other}, targets)
                for own, other in zip(logits, placed, strict=True)
            ]
            total = sum(p["loss_ce"] + 5 * p["loss_bbox"] + 2 * p["loss_giou"] for p in parts)
        total.backward()
        found.append((total.detach(), hidden.grad))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=3e-5, rtol=3e-5)
    assert loss.count == 1000 * 7 + 100 * (16 - 7)


def test_metrics_are_means_over_objects(objective):
    batch, hidden = make_batch("detection"), hidden_of()
    loss = objective(None, {"detection": hidden}, batch)
    accuracy = float(loss.metrics["correct"]) / loss.count
    assert accuracy * 7 * LAYERS == pytest.approx(round(accuracy * 7 * LAYERS), abs=1e-4)
    assert 0 <= accuracy <= 1 and -1 <= float(loss.metrics["giou"]) / loss.count <= 1


def test_a_step_in_parts_has_the_loss_of_the_whole(objective):
    """Two halves with different numbers of objects, one of them with none."""
    whole = make_batch("detection", counts=(0, 0, 4, 1))
    expected = objective(None, {"detection": hidden_of()}, whole)
    terms, total = torch.tensor(float(expected.count)), 0.0
    hidden = hidden_of().view(LAYERS, 4, QUERIES, WIDTH)
    for rows in (slice(0, 2), slice(2, 4)):
        part = whole.having(
            target_labels=whole["target_labels"][:0] if rows.start == 0 else whole["target_labels"],
            target_boxes=whole["target_boxes"][:0] if rows.start == 0 else whole["target_boxes"],
            target_cu_seqlens=torch.tensor([0, 0, 0] if rows.start == 0 else [0, 4, 5]).int(),
            step_terms=terms,
        )
        numbers = {**part.numbers, "step_samples": 4}
        part = dataclasses.replace(part, size=2, numbers=numbers)
        own = hidden[:, rows].reshape(-1, WIDTH)
        loss = objective(None, {"detection": own}, part)
        total += loss.sum
        terms = terms if rows.start == 0 else terms - expected.count
    torch.testing.assert_close(total, expected.sum)


def test_images_without_objects_train_classes_alone(objective):
    objective.zero_grad()
    hidden = hidden_of().requires_grad_()
    loss = objective(None, {"detection": hidden}, make_batch("detection", counts=(0, 0, 0, 0)))
    loss.sum.backward()
    logits, _ = objective.predict(hidden, 4)
    expected = LAYERS * torch.nn.functional.cross_entropy(logits.flatten(0, 2), torch.full((32,), CLASSES))
    torch.testing.assert_close(loss.sum / loss.count, expected)
    assert bool(hidden.grad.isfinite().all()) and float(objective.boxes.last.weight.grad.abs().sum()) == 0


def test_attributes_join_the_loss_of_boxes_object_by_object():
    """With a loop over objects, for matches found anew, and with objects that have none."""
    config = dataclasses.replace(OBJECTIVES["detection"], num_attributes=ATTRIBUTES, attribute_weight=0.7)
    own, plain = config.build(tiny_config()), OBJECTIVES["detection"].build(tiny_config())
    randomize(own, std=0.5)
    assert not plain.load_state_dict(own.state_dict(), strict=False).missing_keys
    batch, hidden = make_batch("detection"), hidden_of().requires_grad_()
    loss, without = (part(None, {"detection": hidden}, batch) for part in (own, plain))
    logits, boxes = own.predict(hidden, 4)
    names = "target_labels", "target_boxes", "target_cu_seqlens"
    objects = Objects(*(batch[name] for name in names), batch.numbers["target_max_seqlen"])
    expected, states = torch.zeros(()), hidden.double()
    head = copy.deepcopy(own.attributes).double()
    for row, number in zip(*(own.tolist() for own in match(logits, boxes, objects, own.costs)), strict=True):
        label = batch["target_labels"][number]
        inner = head.first(torch.cat([states[row], head.classes.weight[label]]))
        chances = head.last(inner).relu().log_softmax(0)
        has = [at for at in batch["target_attributes"][number].tolist() if at >= 0]
        expected = expected - (sum(chances[at] for at in has) / len(has) if has else 0)
    assert any((batch["target_attributes"] < 0).all(1)) and (batch["target_attributes"] >= 0).any()
    added = (loss.sum - without.sum) / loss.count
    torch.testing.assert_close(added, (0.7 * expected / 7).float(), atol=1e-5, rtol=1e-5)
    told = loss.metrics["attributes"] / loss.count
    torch.testing.assert_close(told, (expected / 7 / LAYERS).float(), atol=1e-5, rtol=1e-5)
    added.backward()
    assert float(own.attributes.classes.weight.grad.abs().sum()) > 0


def test_more_objects_than_queries_are_refused():
    sources = {"boxes": source_of("detection", max_targets=9)}
    config = tiny_config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    with pytest.raises(ConfigError, match=r"detection.num_queries is 4, but .* 'boxes' may have 9 objects"):
        check_objectives(config)


def test_a_weight_between_thousandths_is_refused():
    config = tiny_config(objectives={"detection": DetectionConfig(num_classes=5, none_weight=0.0004)})
    with pytest.raises(
        ConfigError, match="none_weight is 0.0004, but terms are counted in thousandths; use 0"
    ):
        check_objectives(config)


def test_a_task_that_the_family_lacks_is_refused():
    config = tiny_config(model=tiny_model(), objectives={"own": DetectionConfig(task="sheep")})
    with pytest.raises(ConfigError, match="objectives.own reads sheep batches, which this model's family"):
        check_objectives(config)
