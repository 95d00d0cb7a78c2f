"""The baseline by brute force, its cache, and what the normalisation does."""

import json

import numpy as np
import pytest
import torch
from sample_runs import SEEN, world

from flava_ds.demo.evaluation.pixel_baseline import (
    EDGE,
    cache_file,
    classify,
    distinct,
    measure,
    pixel_vectors,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))[0]


def test_brightness_does_not_matter_but_inversion_does(inputs):
    """Styles of this world differ by brightness alone, and the second unseen one is a negative."""
    metrics = classify(inputs)
    assert metrics["zero_shot/fluent-emoji-flat/top1_accuracy/pixel_1nn"] == 1.0
    assert metrics["zero_shot/fluent-emoji-high-contrast/top1_accuracy/pixel_1nn"] == 0.0


def test_numbers_are_those_of_a_loop(inputs):
    metrics = classify(inputs)
    contrast = inputs.styles_of(inputs.unseen_style)["fluent-emoji-high-contrast"]
    concepts, groups = inputs.train.column("concept"), inputs.train.column("group")
    keys, queries = (
        pixel_vectors(samples.pixels(EDGE)).double().numpy() for samples in (inputs.train, contrast)
    )
    top5, group = 0, 0
    for query, concept, own_group in zip(
        queries, contrast.column("concept"), contrast.column("group"), strict=True
    ):
        order = np.argsort(-(keys @ query), kind="stable")
        top5 += concept in list(dict.fromkeys(concepts[order]))[:5]
        group += groups[order[0]] == own_group
    assert metrics["zero_shot/fluent-emoji-high-contrast/top5_accuracy/pixel_1nn"] == pytest.approx(
        top5 / len(SEEN)
    )
    assert metrics["linear_probe/fluent-emoji-high-contrast/group_accuracy/pixel_1nn"] == pytest.approx(
        group / len(SEEN)
    )


def test_a_flat_picture_gives_no_nan():
    assert torch.isfinite(pixel_vectors(torch.full((1, 3, 4, 4), 200, dtype=torch.uint8))).all()


def test_distinct_keeps_the_order_of_first_appearance():
    np.testing.assert_array_equal(
        distinct(np.array([["a", "a", "b", "c"], ["d", "d", "d", "d"]]), 3), [["a", "b", "c"], ["d", "", ""]]
    )


def test_the_cache_is_read_for_this_data_and_no_other(inputs):
    first = measure(None, inputs)
    path = cache_file(inputs)
    assert json.loads(path.read_text()) == first and inputs.checksum[:24] in path.name
    path.write_text(json.dumps({"zero_shot/x": 0.5}))
    assert measure(None, inputs) == {"zero_shot/x": 0.5}
    path.write_text("{damaged")
    assert measure(None, inputs) == first
