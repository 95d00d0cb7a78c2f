"""`flava-ds codebook`: trains a recipe's image tokenizer on any images, and stores its codes in shards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flava_ds.config import Config, SourceConfig
from flava_ds.config.options import override
from flava_ds.errors import UserError
from flava_ds.ranks.launch import require_shards
from flava_ds.recipes import resolve

SMALL_RECIPES = ("demo", "flava_debug")
"""Recipes whose codebook uses the demo's short schedule instead of DALL-E's."""


def train(recipe: str, shards: str, out: Path, overrides: list[str]) -> None:
    """Trains the codebook of `recipe` on the images in `shards`.

    `overrides` set fields of CodebookTrainingConfig.

    Raises: UserError for an unknown recipe or option, or for shards without images.
    """
    config = resolve(recipe, [])
    source = picture_source(config, shards)
    from flava_ds.codebook.config import DALLE, DEMO
    from flava_ds.codebook.training import train_codebook

    default = DEMO if recipe in SMALL_RECIPES else DALLE
    training = override(default, overrides, prog="flava-ds codebook train SHARDS --out FILE")
    train_codebook(
        config,
        {"pictures": source},
        out,
        training=training,
        device=device(),
        on_report=lambda report: print(report, flush=True),
    )
    print(out)


def encode(recipe: str, shards: str, weights: Path, out: Path) -> None:
    """Writes shards with codes to `out`, computed by the codebook in `weights`.

    Raises: UserError when the codebook is missing or does not fit the recipe, or for unusable shards.
    """
    config = resolve(recipe, [])
    source = picture_source(config, shards)
    if not weights.exists():
        raise UserError(
            f"--codebook {weights}: no such file; train one with `flava-ds codebook train {shards} --out "
            f"{weights}`"
        )
    from flava_ds.codebook.image_codebook import load_codebook
    from flava_ds.prepare.codes import write_codes

    report = write_codes(
        source,
        load_codebook(weights, config.codebook),
        config,
        out=out,
        device=device(),
        on_shard=lambda shard, n: print(f"{shard}: {n} codes"),
    )
    print(report)


def picture_source(config: Config, shards: str) -> SourceConfig:
    """Returns an image source of these shards, with the transform of the recipe's images.

    Raises: ConfigError or DataError when there are no shards.
    """
    images = (source for source in config.data.sources.values() if source.kind == "image")
    like = next(images, SourceConfig(kind="image", shards=shards))
    require_shards("pictures", shards)
    return dataclasses.replace(like, shards=shards, image_codes_key=None)


def device() -> str:
    """Returns 'cuda' if there is a GPU, otherwise 'cpu'."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
