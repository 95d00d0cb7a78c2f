"""Karpathy's JSON: splits, five captions, and images wherever the publishers' archives put them."""

import json

import pytest
from evaluation.color_world import png, write_karpathy

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.karpathy import KarpathySplit
from flava_ds.evaluation.tasks.coco import DATA as COCO
from flava_ds.evaluation.tasks.flickr30k import DATA as FLICKR

DATA = KarpathySplit("colors", "colors", "none", "get it there", "dataset.json", ("images", "."))


def test_captions_are_stripped_and_cut_to_five(tmp_path):
    write_karpathy(tmp_path, "dataset.json", "images")
    samples = DATA.read(tmp_path, "test")
    assert len(samples) == 6 and {len(said) for said in samples.captions} == {5}
    assert samples.captions[1][0] == "green number 0" and samples.load(1) == png("green", 1)
    assert len(DATA.read(tmp_path, "train")) == 1 and len(DATA.read(tmp_path, "val")) == 0


@pytest.mark.parametrize(
    "data, json_name, folder, filepath",
    [
        (FLICKR, "dataset_flickr30k.json", "flickr30k-images", None),
        (COCO, "dataset_coco.json", "val2014", "val2014"),
        (COCO, "dataset_coco.json", "images/val2014", "val2014"),
    ],
)
def test_published_folders_are_found(tmp_path, data, json_name, folder, filepath):
    write_karpathy(tmp_path, json_name, folder, filepath=filepath)
    assert data.is_here(tmp_path) and data.read(tmp_path, "test").load(2) == png("red", 2)


def test_an_image_that_is_not_there_is_named_with_the_places(tmp_path):
    write_karpathy(tmp_path, "dataset.json", "images")
    (tmp_path / "images" / "0003.png").unlink()
    with pytest.raises(DataError, match="image 0003.png is in none of images, ."):
        DATA.read(tmp_path, "test")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"images": [{"split": "test"}]}',
        '{"images": [{"split": "test", "filename": "a", "sentences": [{}]}]}',
    ],
)
def test_another_layout_is_named(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match="dataset.json: not Karpathy's JSON.*get it there"):
        DATA.read(tmp_path, "test")


def test_an_image_without_captions_is_named(tmp_path):
    entry = {"split": "test", "filename": "a.png", "sentences": []}
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [entry]}))
    with pytest.raises(DataError, match="image a.png has no caption"):
        DATA.read(tmp_path, "test")
