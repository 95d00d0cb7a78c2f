"""The demo's own codebook: its training data, and how the committed one was made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from flava_ds.commands.codebook import picture_source
from flava_ds.config import Config, SourceConfig
from flava_ds.recipes import resolve
from flava_ds.recipes.demo import DATA


def source(config: Config) -> SourceConfig:
    """Returns all images that training may see, with and without captions."""
    shards = sorted(
        str(path) for folder in (DATA / "pairs-train", DATA / "images") for path in folder.glob("*.tar")
    )
    pictures = picture_source(config, "{" + ",".join(shards) + "}")
    return dataclasses.replace(pictures, seed=0, global_batch_size=None)  # it has its own batch size


def train(out: Path, on_report: Callable[[object], None]) -> None:
    """Trains a codebook like the committed one: same steps, images and seed, in fp32.

    `on_report` is called with its progress.
    """
    from flava_ds.codebook.config import SMALL
    from flava_ds.codebook.training import train_codebook

    config = resolve("demo", [])
    train_codebook(config, {"pictures": source(config)}, out, training=SMALL, on_report=on_report)
