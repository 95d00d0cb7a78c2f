"""`flava-ds codebook`: train the image tokenizer of a recipe on any pictures, and store its codes beside
them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flava_ds.config import Config, SourceConfig
from flava_ds.config.options import override
from flava_ds.errors import UserError
from flava_ds.ranks.launch import require_shards
from flava_ds.recipes import resolve

SMALL_RECIPES = ("demo", "flava_debug")
"""Recipes whose codebook is trained with the demo's short schedule instead of DALL-E's."""


def train(recipe: str, shards: str, out: Path, overrides: list[str]) -> None:
    """Trains the codebook of `recipe` on the pictures in `shards`; `overrides` set fields of
    CodebookTrainingConfig.

    Raises: UserError on an unknown recipe or option, or on shards without pictures.
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
    """Writes shards with codes into `out`, computed by the codebook in `weights`.

    Raises: UserError when the codebook is missing or not that of the recipe, or on unusable shards.
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
    """Returns a source of pictures alone, under the transform that the recipe's pictures get.

    Raises: ConfigError or DataError when there are no shards.
    """
    like = next(
        (source for source in config.data.sources.values() if source.kind == "image"),
        SourceConfig(kind="image", shards=shards),
    )
    require_shards("pictures", shards)
    return dataclasses.replace(like, shards=shards, image_codes_key=None)


def device() -> str:
    """Returns 'cuda' where there is a GPU, else 'cpu'."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
