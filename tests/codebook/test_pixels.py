"""What the codebook's trainer is dealt, from real shards."""

import dataclasses

import numpy as np
import pytest
import torch
from data.shard_files import pair_members, picture, write_tar

from flava_ds.codebook.pixels import PixelStream
from flava_ds.config import UNCHANGED, CodebookConfig, Config, SourceConfig
from flava_ds.errors import ConfigError, DataError


@pytest.fixture
def config(tmp_path) -> Config:
    write_tar(tmp_path / "a.tar", pair_members(range(30)))
    write_tar(tmp_path / "b.tar", [(f"{number:04d}.webp", picture(number, 24)) for number in range(100, 130)])
    return Config(name="test", codebook=CodebookConfig(image_size=16, hidden_size=4, vocab_size=8))


def sources(tmp_path) -> dict[str, SourceConfig]:
    return {
        "pairs": SourceConfig(kind="pair", shards=str(tmp_path / "a.tar"), transform=UNCHANGED),
        "images": SourceConfig(kind="image", shards=str(tmp_path / "b.tar"), transform=UNCHANGED),
    }


def rows(pixels: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in pixels]


def test_an_epoch_deals_every_picture_but_the_held_out_once(config, tmp_path):
    stream = PixelStream(config, sources(tmp_path), held_out=6)
    held = stream.held_out()
    assert held.shape == (6, 3, 16, 16) and held.dtype == torch.uint8
    first = [row for step in range(6) for row in rows(stream.batch(step, 9))]
    second = [row for step in range(6, 12) for row in rows(stream.batch(step, 9))]
    assert len(set(first)) == 54 and set(first) == set(second) and first != second
    assert not set(first) & set(rows(held)) and len(set(first) | set(rows(held))) == 60


def test_batches_are_a_function_of_the_step(config, tmp_path):
    cropped = dataclasses.replace(UNCHANGED, crop_scale=(0.5, 1.0))
    augmented = {
        name: dataclasses.replace(source, transform=cropped) for name, source in sources(tmp_path).items()
    }
    left, right = PixelStream(config, augmented, held_out=6), PixelStream(config, augmented, held_out=6)
    late = right.batch(7, 9)
    for step in range(8):
        drawn = left.batch(step, 9)
    assert torch.equal(drawn, late)
    assert set(rows(left.batch(0, 54))) != set(rows(left.batch(1, 54))), (
        "augmentation must change from epoch to epoch"
    )


def test_undecodable_pictures_are_left_out_and_too_many_end_the_run(config, tmp_path):
    write_tar(
        tmp_path / "c.tar",
        [(f"{n:04d}.webp", picture(n) if n % 20 else b"RIFFxxxxWEBPVP8 ") for n in range(200)],
    )
    source = SourceConfig(
        kind="image", shards=str(tmp_path / "c.tar"), transform=UNCHANGED, max_skipped_share=0.2
    )
    assert PixelStream(config, {"images": source}, held_out=1).batch(0, 199).shape[0] in range(189, 192)
    strict = dataclasses.replace(source, max_skipped_share=0.001)
    with pytest.raises(DataError, match="'images'.*unusable"):
        PixelStream(config, {"images": strict}, held_out=1).batch(0, 199)


def test_sources_that_cannot_serve(config, tmp_path):
    with pytest.raises(ConfigError, match="'text' is of kind 'text'"):
        PixelStream(config, {"text": SourceConfig(kind="text", shards=str(tmp_path / "a.tar"))}, held_out=1)
    write_tar(tmp_path / "few.tar", [(f"{n}.webp", picture(n)) for n in range(5)])
    with pytest.raises(DataError, match="'few': 5 images are too few"):
        PixelStream(config, {"few": SourceConfig(kind="image", shards=str(tmp_path / "few.tar"))}, held_out=1)


def test_text_that_a_pair_lacks_does_not_matter(config, tmp_path):
    write_tar(tmp_path / "d.tar", [(f"{n}.webp", picture(n)) for n in range(40)])
    stream = PixelStream(
        config, {"pairs": SourceConfig(kind="pair", shards=str(tmp_path / "d.tar"))}, held_out=4
    )
    assert np.prod(stream.batch(0, 36).shape[:1]) == 36
