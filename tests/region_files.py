"""Regions as a detector would store them, for the tests of several packages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from data.shard_files import WORDS, caption, write_tar
from safetensors.numpy import save

WIDTH, CLASSES = 6, 5


def regions(number: int, count: int | None = None) -> dict[str, np.ndarray]:
    """Features, boxes and classes that a number determines: the whole image and up to five regions."""
    draw = np.random.default_rng(number)
    count = 1 + number % 6 if count is None else count
    corners = np.sort(draw.integers(0, 100, (count, 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0], corners[:, 1] + 1], axis=1) / 101
    boxes[:1] = [0, 0, 1, 1]
    classes = draw.random((count, CLASSES))
    return {
        "features": draw.standard_normal((count, WIDTH)).astype(np.float16),
        "boxes": boxes.astype(np.float32),
        "classes": (classes / classes.sum(1, keepdims=True) * 0.9).astype(np.float32),
    }


def tags(number: int) -> str:
    """Words for an image's objects."""
    return " ".join(np.random.default_rng(number).choice(WORDS, 2))


def member(number: int) -> bytes:
    """The member of a sample."""
    return save(regions(number), metadata={"tags": tags(number)})


def write_regions(folder: Path, numbers=range(24), member: Callable[[int], bytes] = member) -> Path:
    """Writes a shard of captions, regions, and images that nobody can decode."""
    folder.mkdir(parents=True)
    members = []
    for number in numbers:
        members += [
            (f"{number:03d}.webp", b"no picture"),
            (f"{number:03d}.txt", caption(number).encode()),
            (f"{number:03d}.regions.safetensors", member(number)),
        ]
    write_tar(folder / "0.tar", members)
    return folder


def write_texts(folder: Path, numbers=range(24)) -> Path:
    """Writes a shard of texts, unless it is there."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        write_tar(folder / "0.tar", [(f"{n}.txt", caption(500 + n).encode()) for n in numbers])
    return folder


def with_regions(source, folder: Path):
    """A source of pairs that reads these shards."""
    return dataclasses.replace(
        source, shards=str(folder), caption_key=None, regions_key="regions.safetensors", max_regions=6
    )
