"""CLS tokens, images and texts for `fuse_sequences`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Generator

from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.op import Case


def cases() -> tuple[Case, ...]:
    """Returns cases without samples, image or text, odd widths, and more than a tile of each axis."""
    return (
        _case("none", (), image_length=0, width=16),
        _case("no-image", (3, 1), image_length=0, width=16),
        _case("empty-texts", (0, 4, 0), image_length=5, width=1),
        _case("mixed", (2, 9, 17, 5), image_length=16, width=70),
        _case("wide", (12, 20), image_length=37, width=768),
        _case("many", (1, 2) * 40, image_length=2, width=24),
    )


def _case(name: str, lengths: tuple[int, ...], *, image_length: int, width: int) -> Case:
    return Case(name, functools.partial(_draw, lengths, image_length, width), ("cls_token", "image", "text"))


def _draw(lengths: tuple[int, ...], image_length: int, width: int, generator: Generator) -> dict[str, Any]:
    sizes = {
        "cls_token": (width,),
        "image": (len(lengths) * image_length, width),
        "text": (sum(lengths), width),
    }
    drawn = {
        name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()
    }
    return {**drawn, "text_cu_seqlens": cu_seqlens_of(lengths), "text_max_seqlen": max(lengths, default=0)}
