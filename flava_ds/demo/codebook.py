"""The demo's own codebook: what it learns from, and how the committed one is made again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from flava_ds.commands.codebook import picture_source
from flava_ds.config import Config, SourceConfig
from flava_ds.recipes import resolve
from flava_ds.recipes.demo import DATA


def source(config: Config) -> SourceConfig:
    """Returns all pictures that training may see: those with captions and those without."""
    shards = sorted(
        str(path) for folder in (DATA / "pairs-train", DATA / "images") for path in folder.glob("*.tar")
    )
    pictures = picture_source(config, "{" + ",".join(shards) + "}")
    return dataclasses.replace(pictures, seed=0, global_batch_size=None)  # a batch is the training's own


def train(out: Path, on_report: Callable[[object], None]) -> None:
    """Trains one as the committed one was: the same steps, pictures and seed, in fp32. `on_report` hears how
    it goes.
    """
    from flava_ds.codebook.config import DEMO
    from flava_ds.codebook.training import train_codebook

    config = resolve("demo", [])
    train_codebook(config, {"pictures": source(config)}, out, training=DEMO, on_report=on_report)
