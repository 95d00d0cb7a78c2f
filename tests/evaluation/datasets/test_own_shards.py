"""Shards as training reads them, with labels or captions."""

import json

import pytest
from evaluation.color_world import COLORS, png, write_own

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.own_shards import OwnShards

LABELLED, CAPTIONED, PAIRS = OwnShards(), OwnShards(reads="captions"), OwnShards(reads="label and text")


def test_labels_and_pictures(tmp_path):
    write_own(tmp_path, {"test": 2, "train": 3})
    samples = LABELLED.read(tmp_path, "test")
    assert samples.class_names == COLORS and samples.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.load(3) == png("green", 3) and len(LABELLED.read(tmp_path, "train")) == 9
    assert LABELLED.is_here(tmp_path, "train") and not LABELLED.is_here(tmp_path, "val")


def test_captions(tmp_path):
    write_own(tmp_path, {"test": 2}, label="something_else")
    samples = CAPTIONED.read(tmp_path, "test")
    assert samples.captions[0] == ("a blue thing",) and samples.load(5) == png("red", 5)


def write_captioned(root, *records):
    """Writes a test split of one blue picture per record, whose .txt is "first"."""
    from flava_ds.demo.shards import write_shards

    samples = [
        {"key": f"{n}", "png": png("blue", n), "txt": b"first", "json": json.dumps(record).encode()}
        for n, record in enumerate(records)
    ]
    write_shards(root / "test", samples, 4)
    return root


def test_every_caption_of_the_json_counts_and_without_one_the_txt(tmp_path):
    write_captioned(tmp_path, {"captions": ["first", " second ", "third"]}, {}, {"captions": ["first"]})
    samples = CAPTIONED.read(tmp_path, "test")
    assert samples.captions == (("first", "second", "third"), ("first",), ("first",))


@pytest.mark.parametrize("captions", [[], "first", ["first", " "], ["first", 3], None])
def test_captions_that_are_no_list_of_texts_are_named(tmp_path, captions):
    write_captioned(tmp_path, {}, {"captions": captions})
    with pytest.raises(DataError, match="test: sample '1' has \"captions\" in its .json that are no list of"):
        CAPTIONED.read(tmp_path, "test")


def test_pictures_with_a_text_and_a_label(tmp_path):
    write_own(tmp_path, {"test": 2, "train": 3})
    samples = PAIRS.read(tmp_path, "test")
    assert samples.class_names == COLORS and samples.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.texts[::2] == tuple(f"a {color} thing" for color in COLORS) and samples.load(5) == png(
        "red", 5
    )
    assert samples.pictures == samples.keys and len(set(samples.keys)) == 6


def test_a_json_that_is_no_object_is_named(tmp_path):
    write_captioned(tmp_path, {}, ["first"])
    with pytest.raises(DataError, match="the .json of sample '1' is no object"):
        CAPTIONED.read(tmp_path, "test")


def test_a_label_means_the_same_in_every_split(tmp_path):
    """The test split lacks the first class of the training split."""
    write_own(tmp_path, {"test": 2, "train": 2})
    from flava_ds.demo.shards import write_shards

    extra = [{"key": "x", "png": png("red", 1), "txt": b"x", "json": json.dumps({"label": "amber"}).encode()}]
    for file in (tmp_path / "val").glob("*"):
        file.unlink()
    write_shards(tmp_path / "val", extra, 4)
    assert (
        LABELLED.read(tmp_path, "test").class_names
        == ("amber", *COLORS)
        == LABELLED.read(tmp_path, "val").class_names
    )
    assert LABELLED.read(tmp_path, "test").labels.tolist() == [1, 1, 2, 2, 3, 3]


def test_a_sample_without_a_label_is_named(tmp_path):
    write_own(tmp_path, {"test": 2}, label="class")
    with pytest.raises(DataError, match="sample '00000' has no \"label\""):
        LABELLED.read(tmp_path, "test")


def test_a_split_that_is_not_there_is_named_with_what_was_expected(tmp_path):
    write_own(tmp_path, {"test": 2})
    with pytest.raises(
        DataError,
        match="train: no [*].tar of split 'train'; expected test/ and, for probes and fine-t",
    ):
        LABELLED.read(tmp_path, "train")


def test_a_folder_of_shards_alone_is_a_test_split(tmp_path):
    write_own(tmp_path / "splits", {"test": 2})
    (tmp_path / "splits" / "test").rename(tmp_path / "shards")
    assert LABELLED.is_here(tmp_path / "shards") and LABELLED.is_here(tmp_path / "shards", "test")
    assert not LABELLED.is_here(tmp_path / "shards", "train") and not LABELLED.is_here(tmp_path / "splits")
    assert LABELLED.read(tmp_path / "shards", "test").labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("label", [[1], 1.5, {"a": 1}])
def test_a_label_that_names_no_class_is_named(tmp_path, label):
    write_captioned(tmp_path, {"label": 3}, {"label": label})
    with pytest.raises(DataError, match=r"sample '.*': \"label\" .* names no class; write a text or a whole"):
        LABELLED.read(tmp_path, "test")


def test_a_whole_number_is_a_class_however_it_is_written(tmp_path):
    write_captioned(tmp_path, *({"label": label} for label in (3, 3.0, "3")))  # data frames write 3.0
    assert LABELLED.read(tmp_path, "test").labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("label", "lacks"), [("", True), (" ", True), (None, True), (0, False), ("a", False)]
)
def test_an_empty_label_is_none(tmp_path, label, lacks):
    write_captioned(tmp_path, {"label": "a"}, {"label": label})
    if not lacks:
        assert len(LABELLED.read(tmp_path, "test").labels) == 2
        return
    with pytest.raises(DataError, match="sample '1' has no \"label\""):
        LABELLED.read(tmp_path, "test")
