"""Reading evaluation sets: everything is there, in order, and a defect is named."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from sample_runs import EDGE, SEEN, TRAIN_STYLES, pair, picture, write_world

from flava_ds.demo.shards import write_shards
from flava_ds.errors import DataError
from flava_ds.evaluation.samples import read_samples


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return read_samples(write_world(tmp_path_factory.mktemp("world")) / "pairs-train")


def test_samples_of_all_shards_are_read_in_order(train):
    assert train.keys == tuple(f"{style}_{word}" for style in TRAIN_STYLES for word in SEEN)
    assert train.captions[0] == f"a drawing of {SEEN[0]}"
    assert train.column("style")[-1] == TRAIN_STYLES[-1]


def test_pixels_at_the_stored_size_are_the_stored_pixels(train):
    for row in (0, len(train) - 1):
        word, style = SEEN.index(train.records[row]["concept"]), train.records[row]["style"]
        expected = np.asarray(Image.open(io.BytesIO(picture(word, style))).convert("RGB"))
        assert torch.equal(train.pixels(EDGE)[row], torch.from_numpy(expected.copy()).permute(2, 0, 1))
    assert train.pixels(12).shape == (len(train), 3, 12, 12) and train.pixels(12) is train.pixels(12)


def test_a_selection_keeps_samples_and_pictures_together(train):
    chosen = train.select(np.array([5, 2]), "some")
    assert chosen.keys == (train.keys[5], train.keys[2])
    assert torch.equal(chosen.pixels(EDGE), train.pixels(EDGE)[[5, 2]])


def test_pictures_are_read_when_they_are_asked_for(tmp_path):
    """A set of a million pictures does not fit into the memory of every rank."""
    write_shards(tmp_path / "set", [pair(n, style) for style in TRAIN_STYLES for n in range(4)], 3)
    samples = read_samples(tmp_path / "set")
    chosen = samples.select(np.array([5, 2]), "some")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(chosen.encoded_images.__getitem__, [0, 1] * 50))
    assert found == [samples.encoded_images[5], samples.encoded_images[2]] * 50
    assert found[:2] == [picture(5 % 4, TRAIN_STYLES[1]), picture(2, TRAIN_STYLES[0])]
    shutil.rmtree(tmp_path / "set")
    write_shards(tmp_path / "set", [pair(n, TRAIN_STYLES[0]) for n in range(4)], 1)
    with pytest.raises(DataError, match="was changed or replaced while it is being read"):
        samples.encoded_images[0]


def test_a_missing_member_is_named(tmp_path):
    broken = pair(0, "noto")
    del broken["txt"]
    write_shards(tmp_path / "set", [pair(1, "noto"), broken], 10)
    with pytest.raises(
        DataError, match=r"sample .* in .*\.tar has no \.txt \(1 of \d+ samples\); evaluation counts"
    ):
        read_samples(tmp_path / "set")


def test_a_missing_picture_may_be_of_any_kind(tmp_path):
    broken = pair(0, "noto")
    del broken["webp"]
    write_shards(tmp_path / "set", [pair(1, "noto"), broken], 10)
    with pytest.raises(DataError, match=r"has no \.webp or \.jpg or \.jpeg or \.png \(1 of"):
        read_samples(tmp_path / "set")


def test_members_with_a_dot_in_their_suffix_are_told_and_lose_no_sample(tmp_path, caplog):
    write_shards(tmp_path / "set", [pair(0, "noto") | {"seg.png": b""}, pair(1, "noto")], 10)
    assert len(read_samples(tmp_path / "set")) == 2
    assert "left out of 2 samples: suffix with a dot 1" in caplog.text


def test_a_damaged_picture_is_named(tmp_path):
    write_shards(tmp_path / "set", [pair(0, "noto") | {"webp": b"RIFFxxxxWEBPVP8 nonsense"}], 10)
    with pytest.raises(DataError, match="noto_apple"):
        read_samples(tmp_path / "set").pixels(12)


def test_a_missing_field_is_named(train):
    with pytest.raises(DataError, match="noto_apple.*'colour'"):
        train.column("colour")
