"""A small corpus and its configuration."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from data.shard_files import PIECES, caption, encode, pair_members, write_tar

from flava_ds.config import (
    CodebookConfig,
    Config,
    DataConfig,
    ImageTransformConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.families.flava.config import FlavaConfig, FlavaTextConfig, flava_objectives
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
from flava_ds.storage import retry


@pytest.fixture
def make_shard(tmp_path):
    """Returns a function that writes a shard: make_shard('00000.tar', members) -> path."""

    def make(name: str, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_tar(path, members, form)

    return make


@pytest.fixture
def vocabulary(tmp_path) -> str:
    """A small WordPiece vocabulary's path."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return str(path)


TRANSFORM = ImageTransformConfig(
    crop_scale=(0.5, 1.0),
    horizontal_flip=0.5,
    rotation_degrees=10.0,
    color_jitter=0.5,
    grayscale=0.3,
    invert=0.2,
    edges=0.2,
)


@pytest.fixture
def make_config(tmp_path, make_shard, vocabulary):
    """Returns a function that builds a small configuration over three sources of uneven shards (pair 23,
    image 10, text 17 samples).
    """
    make_shard("pairs/0.tar", pair_members(range(0, 13)))
    make_shard("pairs/1.tar", pair_members(range(13, 23)))
    make_shard(
        "images/0.tar", [(f"{n}.png", encode(np.full((12, 9, 3), n, np.uint8), "png")) for n in range(10)]
    )
    make_shard("text/0.tar", [(f"{n}.txt", caption(100 + n).encode()) for n in range(17)])

    def make(**changes) -> Config:
        folders = {name: str(tmp_path / name) for name in ("pairs", "images", "text")}
        sources = {
            "pairs": SourceConfig(
                kind="pair",
                seed=0,
                shards=folders["pairs"],
                weight=0.6,
                caption_key="captions",
                max_tokens=24,
                transform=TRANSFORM,
            ),
            "images": SourceConfig(
                kind="image", seed=1, shards=folders["images"], weight=0.2, transform=TRANSFORM
            ),
            "text": SourceConfig(
                kind="text", seed=2, shards=folders["text"], weight=0.2, max_tokens=24, global_batch_size=16
            ),
        }
        masking = {"num_masked_patches": 6, "min_patches_per_block": 2}
        objectives = flava_objectives(
            mim=MaskedImageConfig(**masking),
            mmm_image=MultimodalMaskedImageConfig(**masking),
            itm=ImageTextMatchingConfig(mismatch_probability=0.3),
        )
        training = {"total_steps": 12, "global_batch_size": 8} | changes.pop("training", {})
        data = {"sources": sources, "vocabulary": vocabulary, "num_workers": 0} | changes.pop("data", {})
        return Config(
            name="test",
            model=FlavaConfig(
                image=VisionEncoderConfig(image_size=16, patch_size=4),
                text=FlavaTextConfig(vocab_size=128, max_position_embeddings=32),
            ),
            codebook=CodebookConfig(image_size=32, vocab_size=64),
            objectives=changes.pop("objectives", objectives),
            data=DataConfig(**data),
            training=TrainingConfig(**training),
            **changes,
        )

    return make


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Keeps indexes and parts of these tests apart, and waits little between attempts."""
    monkeypatch.delenv("FLAVA_DS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 0.001)
