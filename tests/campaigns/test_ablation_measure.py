"""Each domain's numbers, item by item."""

import dataclasses

import numpy as np
import pytest
import torch

from flava_ds.campaigns import fine_tuned, measure
from flava_ds.campaigns.ablation import DOMAINS
from flava_ds.campaigns.measures import labels_that_fit, reciprocal_ranks
from flava_ds.demo.dataset import unpack
from flava_ds.demo.evaluation.inputs import build_inputs
from flava_ds.evaluation.frozen_model import Described
from flava_ds.evaluation.opening import freeze
from flava_ds.evaluation.samples import Samples
from flava_ds.recipes.ablation import ablation


def samples(concepts, subgroups):
    """Makes drawings without pictures."""
    records = tuple(
        {"concept": concept, "subgroup": subgroup}
        for concept, subgroup in zip(concepts, subgroups, strict=True)
    )
    keys = tuple(map(str, range(len(records))))
    return Samples("drawings", keys, keys, records, tuple(key.encode() for key in keys))


def test_reciprocal_ranks_by_hand():
    keys = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]])
    labels = np.array(["a", "b", "c", "b"])
    # a finds itself first; the second finds itself, or the other b, first; c is first of its own.
    assert reciprocal_ranks(keys, keys, labels).tolist() == [1, 1, 1, 1]
    queries = torch.tensor([[0.0, 1], [1, 0], [1, 0], [1, 0]])
    # Orders c b2 b1 a, then a b1 b2 c: a is fourth, b second, c fourth.
    assert reciprocal_ranks(queries, keys, labels).tolist() == [1 / 4, 1 / 2, 1 / 4, 1 / 2]
    # Of equal keys, half of the wrong ones come first: 1 + 3 / 2, and 1 + 2 / 2 for the two of b.
    flat = reciprocal_ranks(torch.zeros(4, 2), keys, labels)
    assert flat.tolist() == [1 / 2.5, 1 / 2, 1 / 2.5, 1 / 2]


def test_labels_fit_as_their_classes_say():
    concepts = [f"c{number // 2}" for number in range(40)]
    subgroups = [f"s{number // 10}" for number in range(40)]
    names = {concept: f"the {concept}" for concept in concepts}
    pairs = labels_that_fit(samples(concepts, subgroups), names)
    group = dict(zip(names.values(), subgroups[::2], strict=True))
    for number, (text, label) in enumerate(zip(pairs.texts, pairs.labels, strict=True)):
        assert label == number % 3
        own = text == names[concepts[number]]
        near = group[text] == subgroups[number]
        assert own == (label == 2)
        if label == 1:
            assert near and not own
    assert pairs.load(7) == b"7"


def test_a_drawing_alone_in_its_subgroup_gets_no_near_label():
    pairs = labels_that_fit(samples(["a", "b", "c"], ["s", "t", "u"]), {"a": "a", "b": "b", "c": "c"})
    assert pairs.labels.tolist() == [0, 0, 2] and pairs.texts[1] != "b"


def test_numbers_are_summed_by_cluster(monkeypatch):
    hits = {
        "vision/x": ("concepts", np.array(["b", "a", "b"]), np.array([True, True, False])),
        "vision/y_reciprocal_rank": ("concepts", np.array(["b", "a", "b"]), np.array([0.5, 0.25, 1.0])),
    }
    monkeypatch.setitem(measure.MEASURES, "vision", lambda model, inputs: hits)
    found = measure.measure(None, None, ("vision",))
    assert found["counts"] == {"concepts": [1, 2]}
    assert [entry["sums"] for entry in found["metrics"].values()] == [[1, 1], [250, 1500]]
    assert [entry["scale"] for entry in found["metrics"].values()] == [1, 1000]
    assert [entry["value"] for entry in found["metrics"].values()] == [0.666667, 0.583333]


@pytest.mark.parametrize("row", ["flava_no_init", "clip"])
def test_every_domain_of_a_real_model(row, monkeypatch):
    config = ablation(row)
    described = Described(row, config.model.type)
    model = freeze(config, config.model.build(config).eval().requires_grad_(False), described)
    inputs = build_inputs(config, unpack())
    for name in ("train", "unseen_style", "texts"):
        inputs.__dict__[name] = getattr(inputs, name).select(np.arange(0, 600, 5), name)
    small = dataclasses.replace(measure.TEXTS, samples=64, updates=4, warmup_updates=1, epochs=2)
    monkeypatch.setattr(fine_tuned, "TEXTS", small)
    monkeypatch.setattr(fine_tuned, "PAIRS", small)
    found = measure.measure(model, inputs, DOMAINS)
    assert found["counts"]["concepts"] and sum(found["counts"]["concepts"]) == 120
    assert sum(found["counts"]["words"]) == 3 * len(inputs.texts)
    names = {name.split("/")[0]: [] for name in found["metrics"]}
    for name, entry in found["metrics"].items():
        names[name.split("/")[0]].append(name)
        counts = found["counts"][entry["clusters"]]
        assert len(entry["sums"]) == len(counts)
        share = sum(entry["sums"]) / sum(counts) / entry["scale"]
        assert share == pytest.approx(entry["value"], abs=1e-3)
    assert [len(names[domain]) for domain in DOMAINS] == [2, 1, 3]
