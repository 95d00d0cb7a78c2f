"""Inputs for `pack` and `unpack`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Generator

from flava_kernels.op import Case

LENGTHS = {
    "one": (1,),
    "empty": (0, 0),
    "full": (7, 7, 7),
    "mixed": (2, 0, 17, 1, 5),
    "captions": (12, 77, 2, 20),
}
"""Sequence lengths by case name."""

WIDTHS = {"one": 1, "empty": 8, "full": 64, "mixed": 70, "captions": 768}


def cu_seqlens_of(lengths: tuple[int, ...]) -> torch.Tensor:
    """Returns where each sequence starts, and the end of the last: [b+1] int32."""
    return torch.tensor([0, *lengths]).cumsum(0).int()


def pack_cases() -> tuple[Case, ...]:
    """Returns one row, no rows, no padding, odd widths, and more rows and columns than a tile."""
    return tuple(Case(name, functools.partial(_padded, name), ("padded",)) for name in LENGTHS)


def unpack_cases() -> tuple[Case, ...]:
    """Returns the same cases in the other direction."""
    return tuple(Case(name, functools.partial(_packed, name), ("packed",)) for name in LENGTHS)


def _padded(name: str, generator: Generator) -> dict[str, Any]:
    lengths = LENGTHS[name]
    padded = torch.randn(
        len(lengths), max(lengths) + 2, WIDTHS[name], generator=generator, dtype=torch.float64
    )
    return {"padded": padded, "cu_seqlens": cu_seqlens_of(lengths), "total": sum(lengths)}


def _packed(name: str, generator: Generator) -> dict[str, Any]:
    lengths = LENGTHS[name]
    packed = torch.randn(sum(lengths), WIDTHS[name], generator=generator, dtype=torch.float64)
    return {"packed": packed, "cu_seqlens": cu_seqlens_of(lengths), "max_seqlen": max(lengths) + 2}
