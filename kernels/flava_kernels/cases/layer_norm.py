"""What the tests of LayerNorm draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from flava_kernels.op import Case, Limits

SIZES = ((1, 64), (3, 64), (37, 64), (3, 1), (3, 768), (5, 770), (3, 1024), (3, 3072), (2, 8192))
"""Rows and columns."""


def add_layer_norm_cases() -> tuple[Case, ...]:
    """Rows of ordinary numbers in many shapes, constant rows, a large mean, fp32 parameters of half-precision rows."""
    names = ("x", "residual", "weight", "bias")
    cases = [Case(f"{rows}x{columns}", lambda g, size=(rows, columns): _draw(g, *size), names) for rows, columns in SIZES]
    # torch's own mean of a row is wrong by half a unit in the last place of 1e4, 5e-4 of a standard deviation
    large_mean = {torch.float32: Limits(2e-3, 2e-3)}
    cases += [
        Case("constant rows", lambda g: _draw(g, 3, 96, constant=True), names),
        Case("constant rows, eps 1e-12", lambda g: _draw(g, 3, 96, constant=True) | {"eps": 1e-12}, names, dtypes=(torch.float32, torch.bfloat16)),
        Case("large mean", lambda g: _draw(g, 3, 768, mean=1e4), names, dtypes=(torch.float32,), limits=large_mean),
        Case("fp32 parameters", lambda g: _draw(g, 37, 96), names, fp32=("weight", "bias")),
        Case("no rows", lambda g: _draw(g, 0, 64), names),
    ]
    return tuple(cases)


def layer_norm_cases() -> tuple[Case, ...]:
    """The same without a residual, in fewer shapes: it shares its kernels with `add_layer_norm`."""
    kept = ("37x64", "5x770", "3x1024", "constant rows", "fp32 parameters", "no rows")
    names = ("x", "weight", "bias")
    return tuple(
        Case(case.name, lambda g, make=case.make: {name: value for name, value in make(g).items() if name != "residual"}, names, fp32=case.fp32)
        for case in add_layer_norm_cases()
        if case.name in kept
    )


def _draw(generator: Generator, rows: int, columns: int, *, mean: float = 0.0, constant: bool = False) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, residual = normal(rows, columns) + mean, normal(rows, columns)
    if constant:  # quarters, so that their sums are exact in every dtype
        x, residual = ((normal(rows, 1) * 8).round() / 4 * torch.ones(columns, dtype=torch.float64) for _ in range(2))
    return {"x": x, "residual": residual, "weight": 1 + 0.2 * normal(columns), "bias": 0.2 * normal(columns), "eps": 1e-6}
