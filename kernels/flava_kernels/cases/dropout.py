"""Inputs for dropout."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Generator

from flava_kernels.op import Case

SHAPES: dict[str, tuple[int, int, int, float]] = {
    "one": (1, 1, 0, 0.5),
    "37x64": (37, 64, 3, 0.1),
    "5x770": (5, 770, 49, 0.1),
    "most dropped": (19, 300, 2**31 - 1, 0.9),
    "nothing dropped": (3, 70, 1, 0.0),
    "no rows": (0, 64, 1, 0.1),
}
"""Rows, columns, stream and probability by case name."""


def cases() -> tuple[Case, ...]:
    """Returns one element, partial tiles, streams and probabilities at both ends."""
    return tuple(Case(name, functools.partial(_draw, *shape), ("x",)) for name, shape in SHAPES.items())


def _draw(rows: int, columns: int, stream: int, p: float, generator: Generator) -> dict[str, Any]:
    """Draws keys from all 64-bit integers."""
    halves = torch.randint(2**32, (2, rows), generator=generator)
    return {
        "x": torch.randn(rows, columns, generator=generator, dtype=torch.float64),
        "keys": (halves[0] << 32) ^ halves[1],
        "stream": stream,
        "p": p,
    }
