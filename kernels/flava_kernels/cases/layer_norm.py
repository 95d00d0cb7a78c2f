"""Inputs for LayerNorm."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Generator, Tensor

from flava_kernels.op import DTYPES, Case, Limits

SIZES = ((1, 64), (3, 64), (37, 64), (3, 1), (3, 768), (5, 770), (3, 1024), (3, 3072), (2, 8192))
"""Rows and columns."""
SIZES_WITH_BIAS = ((37, 64), (21, 770), (3, 1024), (2, 8192))

OF_TORCH = {
    "3x1": {torch.float32: Limits(2e-7, 2e-4)},
    "constant rows": {torch.float32: Limits(2e-7, 4e-3), torch.float16: Limits(1e-3, 4e-3)},
    "constant rows, eps 1e-12": {torch.float32: Limits(2e-7, 4e-3)},
    "large mean": {torch.float32: Limits(1e-3, 1e-3)},
}
"""Errors of torch's kernels when the spread of a row is far below its mean: they round, then subtract."""

ROUNDED_SUM = {"large mean": {torch.float32: Limits(5e-4, 5e-4)}}
"""With a residual, x + r itself is rounded before it is normalised."""


SUMS_OF_ROUNDED_ROWS = {
    dtype: Limits(rounded, rounded, rounded)
    for dtype, rounded in ((torch.float16, 5e-4), (torch.bfloat16, 3.5e-3))
}
"""torch sums the gradient of x's bias from rows that are rounded; the kernels sum before they round."""


def add_layer_norm_cases() -> tuple[Case, ...]:
    """Returns many shapes, constant rows, a large mean, fp32 parameters of half-precision rows, and some of
    them with the bias of x.
    """

    def case(
        name: str,
        fp32: tuple[str, ...] = (),
        dtypes: tuple[torch.dtype, ...] = DTYPES,
        reference_limits: dict[torch.dtype, Limits] | None = None,
        **draw: Any,
    ) -> Case:
        tensors = ("x", "residual", "weight", "bias", *(("x_bias",) if draw.get("x_bias") else ()))
        return Case(
            name,
            lambda generator: _draw(generator, **draw),
            tensors,
            fp32,
            dtypes,
            ROUNDED_SUM.get(name, {}),
            reference_limits or OF_TORCH.get(name, {}),
        )

    return (
        *(case(f"{rows}x{columns}", rows=rows, columns=columns) for rows, columns in SIZES),
        case("constant rows", rows=3, columns=96, constant=True),
        case(
            "constant rows, eps 1e-12",
            rows=3,
            columns=96,
            constant=True,
            eps=1e-12,
            dtypes=(torch.float32, torch.bfloat16),
        ),
        case("large mean", rows=3, columns=768, mean=1e4, dtypes=(torch.float32,)),
        case("fp32 parameters", rows=37, columns=96, quarters=True, fp32=("weight", "bias")),
        case("no rows", rows=0, columns=64),
        *(
            case(f"{rows}x{columns}, bias of x", rows=rows, columns=columns, x_bias=True)
            for rows, columns in SIZES_WITH_BIAS
        ),
        case(
            "fp32 parameters, bias of x",
            rows=37,
            columns=96,
            quarters=True,
            x_bias=True,
            fp32=("weight", "bias", "x_bias"),
            reference_limits=SUMS_OF_ROUNDED_ROWS,
        ),
        case("no rows, bias of x", rows=0, columns=64, x_bias=True),
    )


def layer_norm_cases() -> tuple[Case, ...]:
    """Returns fewer shapes without a residual: the kernels are those of `add_layer_norm`."""
    kept = ("37x64", "5x770", "3x1024", "constant rows", "large mean", "fp32 parameters", "no rows")
    return tuple(_without_residual(case) for case in add_layer_norm_cases() if case.name in kept)


def _without_residual(case: Case) -> Case:
    def make(generator: Generator) -> dict[str, Any]:
        return {name: value for name, value in case.make(generator).items() if name != "residual"}

    return dataclasses.replace(case, make=make, differentiable=("x", "weight", "bias"), limits={})


def _draw(
    generator: Generator,
    *,
    rows: int,
    columns: int,
    mean: float = 0.0,
    constant: bool = False,
    quarters: bool = False,
    eps: float = 1e-6,
    x_bias: bool = False,
) -> dict[str, Any]:
    """Draws the arguments; quarters add exactly in every dtype, so what depends on the sum stays accurate."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, residual = normal(rows, columns) + mean, normal(rows, columns)
    if constant:
        x, residual = (
            (normal(rows, 1) * 8).round() / 4 * torch.ones(columns, dtype=torch.float64) for _ in range(2)
        )
    if quarters:
        x, residual = (x * 4).round() / 4, (residual * 4).round() / 4
    return {
        "x": x,
        "residual": residual,
        "weight": 1 + 0.2 * normal(columns),
        "bias": 0.2 * normal(columns),
        "eps": eps,
        **({"x_bias": normal(columns)} if x_bias else {}),
    }
