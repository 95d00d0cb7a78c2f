"""Matches against all assignments of up to four objects, and against transformers' matcher."""

import builtins
import itertools

import numpy as np
import pytest
import torch
from families.unit.unit_toys import targets_of

from flava_ds.errors import ConfigError
from flava_ds.layers.boxes import to_centres
from flava_ds.objectives import set_matching
from flava_ds.objectives.set_matching import MatchCosts, Objects, assigned, match

COSTS = MatchCosts(distance=5.0, overlap=2.0)
LAYERS, QUERIES, CLASSES, COUNTS = 3, 6, 5, (3, 0, 4, 1)


def case(counts=COUNTS, seed: int = 0):
    draw = np.random.default_rng(seed)
    targets = targets_of("detection", counts, draw)
    bounds = torch.tensor([0, *counts]).cumsum(0).int()
    objects = Objects(
        torch.from_numpy(targets.labels), torch.from_numpy(targets.boxes), bounds, max(counts, default=0)
    )
    logits = torch.from_numpy(2 * draw.standard_normal((LAYERS, len(counts), QUERIES, CLASSES + 1))).float()
    boxes = torch.from_numpy(draw.uniform(0.2, 0.6, (LAYERS, len(counts), QUERIES, 4))).float()
    return logits, boxes, objects


def by_layer_and_image(rows, own, size):
    """{(layer, image, query): object}"""
    places = np.unravel_index(rows.numpy(), (LAYERS, size, QUERIES))
    return {tuple(map(int, place)): int(number) for *place, number in zip(*places, own.numpy(), strict=True)}


def test_transformers_matcher_agrees():
    loss = pytest.importorskip("transformers.loss.loss_for_object_detection")
    matcher = loss.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    logits, boxes, objects = case()
    found = by_layer_and_image(*match(logits, boxes, objects, COSTS), len(COUNTS))
    ends = objects.cu_seqlens.tolist()
    spans = list(itertools.pairwise(ends))
    targets = [
        {"class_labels": objects.labels[a:b], "boxes": to_centres(objects.boxes[a:b])} for a, b in spans
    ]
    expected = {}
    for layer in range(LAYERS):
        pairs = matcher({"logits": logits[layer], "pred_boxes": boxes[layer]}, targets)
        for image, (queries, own) in enumerate(pairs):
            expected |= {
                (layer, image, q): spans[image][0] + o
                for q, o in zip(queries.tolist(), own.tolist(), strict=True)
            }
    assert found == expected and len(found) == LAYERS * sum(COUNTS)


def test_no_other_assignment_is_cheaper():
    draw = np.random.default_rng(0)
    table = draw.standard_normal((2, 3, QUERIES, 4))
    table[:, 1, :, 2:] = np.inf
    layer, image, query, own = assigned(table).numpy()
    for at, number in itertools.product(range(2), range(3)):
        chosen = (layer == at) & (image == number)
        count = 2 if number == 1 else 4
        assert own[chosen].tolist() == list(range(count))
        costs = [
            sum(table[at, number, q, o] for o, q in enumerate(tried))
            for tried in itertools.permutations(range(QUERIES), count)
        ]
        assert table[at, number, query[chosen], own[chosen]].sum() == pytest.approx(min(costs))


def test_the_order_of_objects_changes_no_pair():
    logits, boxes, objects = case((4, 3))
    order = torch.tensor([2, 0, 3, 1, 6, 5, 4])
    other = Objects(objects.labels[order], objects.boxes[order], objects.cu_seqlens, objects.longest)
    one = by_layer_and_image(*match(logits, boxes, objects, COSTS), 2)
    two = by_layer_and_image(*match(logits, boxes, other, COSTS), 2)
    assert one == {place: int(order[own]) for place, own in two.items()}


def test_batches_without_objects_and_predictions_that_are_no_numbers():
    logits, boxes, objects = case((0, 0))
    assert [len(own) for own in match(logits, boxes, objects, COSTS)] == [0, 0]
    logits, boxes, objects = case()
    logits[0, 0] = float("nan")
    boxes[1, 2, :3] = float("nan")
    rows, own = match(logits, boxes, objects, COSTS)
    found = by_layer_and_image(rows, own, len(COUNTS))
    assert len(found) == LAYERS * sum(COUNTS)
    assert {q for layer, image, q in found if (layer, image) == (1, 2)} >= {3, 4, 5}


def test_without_scipy_one_line_says_what_to_install(monkeypatch):
    true_import = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith("scipy"):
            raise ImportError(name)
        return true_import(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs scipy; pip install 'flava-ds\[eval\]'"):
        set_matching.assigned(np.zeros((1, 1, 2, 1)))
