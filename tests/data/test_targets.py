"""Labels of samples: what a member may hold, and their way from shards into batches."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from data.shard_files import write_tar
from families.unit.unit_toys import OBJECTIVES, source_of, tiny_config
from safetensors.numpy import save
from torchvision.io import encode_png

from flava_ds import config as configuration
from flava_ds.config import UNCHANGED
from flava_ds.config.checks import check_targets
from flava_ds.data.plan import TargetsPlan
from flava_ds.data.reader import BatchReader
from flava_ds.data.sources import open_source
from flava_ds.data.targets import read_targets
from flava_ds.errors import ConfigError, DataError
from flava_ds.storage.faults import SampleFault

BOXES = np.array([[0.1, 0.2, 0.5, 1], [0, 0, 1, 1]], dtype=np.float32)
LABELS = np.array([3, 1])


def read(data: bytes, boxes: bool = True):
    return read_targets(data, TargetsPlan(num_classes=5, most=3, boxes=boxes))


def test_attributes_get_the_width_of_all_batches():
    plan = TargetsPlan(num_classes=5, most=3, boxes=True, num_attributes=4, most_attributes=3)
    members = {"labels": LABELS, "boxes": BOXES}
    found = read_targets(save(members | {"attributes": np.array([[3, 0], [-1, -1]])}), plan)
    assert found.attributes.tolist() == [[3, 0, -1], [-1, -1, -1]]
    for wrong, detail in (
        ({}, "no tensor 'attributes'"),
        ({"attributes": np.array([[4], [0]])}, "attributes 0 .. 4, but the objective's num_attributes is 4"),
        ({"attributes": np.zeros((2, 4), np.int64)}, "4 columns of attributes, more than max_attributes 3"),
        (
            {"attributes": np.zeros((1, 2), np.int64)},
            r"shape \[1, 2\], expected \[2, ROWS\]",
        ),
    ):
        with pytest.raises(SampleFault, match=detail):
            read_targets(save(members | wrong), plan)


def test_members_come_back_as_they_were_written():
    found = read(save({"labels": LABELS, "boxes": BOXES}))
    assert found.labels.tolist() == [3, 1] and np.array_equal(found.boxes, BOXES)
    assert found.scores.tolist() == [1, 1]
    scores = np.array([0.3, 1], dtype=np.float32)
    found = read(save({"labels": LABELS, "scores": scores}), boxes=False)
    assert found.boxes is None and np.array_equal(found.scores, scores)
    empty = read(save({"labels": LABELS[:0], "boxes": BOXES[:0]}))
    assert empty.labels.shape == (0,) and empty.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("tensors", "boxes", "detail"),
    [
        ({"boxes": BOXES}, True, "no tensor 'labels'"),
        ({"labels": LABELS}, True, "no tensor 'boxes'"),
        ({"labels": LABELS.astype(np.int32)}, False, "'labels' has dtype 'I32'; only I64"),
        ({"labels": LABELS[None]}, False, r"'labels' has shape \[1, 2\], expected \[ROWS\]"),
        ({"labels": LABELS[:0]}, False, "0 labels, but there must be at least one"),
        ({"labels": np.array([5, 0])}, False, "labels 0 .. 5, but the objective's num_classes is 5"),
        ({"labels": np.array([-1, 0])}, False, "labels -1 .. 0"),
        ({"labels": np.array([1, 1])}, False, "a label that is listed twice"),
        ({"labels": LABELS, "boxes": BOXES[:1]}, True, r"'boxes' has shape \[1, 4\], expected \[2, 4\]"),
        ({"labels": LABELS, "boxes": BOXES[:, ::-1].copy()}, True, "a box outside"),
        ({"labels": LABELS, "scores": np.array([0.5, 1.5], np.float32)}, False, "a score outside 0 .. 1"),
        ({"labels": LABELS, "scores": np.array([0.5, np.nan], np.float32)}, False, "no numbers"),
    ],
)
def test_anything_else_is_refused_with_its_own_words(tensors, boxes, detail):
    with pytest.raises(SampleFault, match=detail) as caught:
        read(save(tensors), boxes)
    assert caught.value.reason == "bad targets"


def test_more_labels_than_the_source_may_have_are_a_reason_of_their_own():
    with pytest.raises(SampleFault, match="4, more than max_targets 3") as caught:
        read(save({"labels": np.zeros(4, np.int64), "boxes": BOXES}))
    assert caught.value.reason == "too many targets"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """12 pictures with labels; number 4 has no member, 7 has a class too many."""
    folder = tmp_path_factory.mktemp("labelled")
    draw, members, told = np.random.default_rng(0), [], {}
    for number in range(12):
        pixels = torch.from_numpy(draw.integers(0, 256, (3, 16, 16), dtype=np.uint8))
        labels = draw.integers(0, 5, number % 4)
        boxes = np.tile(BOXES[:1], (len(labels), 1))
        told[f"{number:03d}"] = labels.tolist()
        labels = np.append(labels, 9) if number == 7 else labels
        boxes = np.tile(BOXES[:1], (len(labels), 1))
        members += [(f"{number:03d}.png", encode_png(pixels).numpy().tobytes())]
        if number != 4:
            members += [(f"{number:03d}.targets.safetensors", save({"labels": labels, "boxes": boxes}))]
    write_tar(folder / "0.tar", members)
    return folder, told


@pytest.mark.parametrize("reading", ["indexed", "stream"])
def test_batches_hold_what_the_shards_hold(world, reading):
    folder, told = world
    config = tiny_config()
    source = source_of("detection", shards=str(folder), reading=reading, max_skipped_share=0.5, seed=0)
    config = config.with_sources({"boxes": source})
    configuration.check(config)
    batch = BatchReader(config, open_source(config, "boxes")).batch(np.arange(10))
    bounds = batch["target_cu_seqlens"].tolist()
    assert batch.kind == "detection" and batch["pixel_values"].shape == (10, 3, 16, 16)
    for row, key in enumerate(batch.keys):
        labels = batch["target_labels"][bounds[row] : bounds[row + 1]].tolist()
        assert labels == told[key] and key not in ("004", "007")
    assert batch["target_boxes"].shape == (bounds[-1], 4)
    assert batch.numbers["target_max_seqlen"] == max(len(told[key]) for key in batch.keys)
    assert batch.read.skipped.get("bad targets", 0) == 1
    plan = config.model.plan(config, source)
    assert plan.targets == TargetsPlan(num_classes=5, most=4, boxes=True)
    assert sum(t.nbytes for t in batch.tensors.values()) <= 10 * (plan.bytes_per_sample() + 16)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("detection", {"targets_key": None}, "an objective reads labels .*.targets-key targets.safetensors"),
        ("qnli", {}, "no objective reads the labels of qnli steps; leave out targets_key"),
        ("detection", {"transform": UNCHANGED}, "transform.crop_ratio moves what its boxes describe"),
        (
            "detection",
            {"transform": dataclasses.replace(UNCHANGED, horizontal_flip=0.5)},
            "transform.horizontal_flip moves",
        ),
    ],
)
def test_sources_that_do_not_fit_their_objective_are_refused(task, changes, message):
    config = tiny_config(objectives=OBJECTIVES)
    own = source_of(task, **changes)
    config = config.with_sources({"own": own})
    with pytest.raises(ConfigError, match=f"source 'own': {message}"):
        check_targets(config)


def test_a_key_with_another_ending_is_refused(world):
    source = source_of("detection", shards=str(world[0]), targets_key="boxes.json", seed=0)
    config = tiny_config().with_sources({"boxes": source})
    with pytest.raises((ConfigError, DataError), match=r"targets_key 'boxes.json' must end with safetensors"):
        open_source(config, "boxes")
    assert json.loads(configuration.dumps(config))["data"]["sources"]["boxes"]["task"] == "detection"
