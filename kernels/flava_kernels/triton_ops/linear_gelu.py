"""GELU of a linear layer's output; backward, its gradient fused with the bias gradient.

Every [T f] tensor is read or written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flava_kernels.triton_ops.column_sums import (
    MULTIPROCESSORS,
    TILE_COLUMNS,
    TILE_ROWS,
    TILE_WARPS,
    column_sum,
)
from flava_kernels.triton_ops.launch import (
    ARCHITECTURES,
    Launch,
    architecture,
    ceil_div,
    on_its_device,
)

ELEMENTS, FORWARD_WARPS = 2048, 4
"""Elements per forward program."""

BLOCK_ROWS, BLOCK_COLUMNS, BACKWARD_WARPS = 4, 512, 4
"""Tile per step of a backward program, which iterates down the rows of one block of columns."""

TILES_PER_PROGRAM = 4
"""Minimum number of tiles per backward program: its partial sums are read again."""


@triton.jit
def _distribution(z):
    """Phi(z), by the error function."""
    return 0.5 + 0.5 * tl.math.erf(z * 0.7071067811865476)


@triton.jit
def _density(z):
    """phi(z) = exp(-z^2 / 2) / sqrt(2 pi), with the exponential to base 2."""
    return 0.3989422804014327 * tl.math.exp2(z * z * -0.7213475204444817)


# Specialised on the divisibility of `elements`: otherwise the mask would make every load scalar.
@triton.jit
def _forward(Z, Y, elements, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(Z + place, mask=place < elements, other=0.0).to(tl.float32)
    tl.store(Y + place, (z * _distribution(z)).to(Y.dtype.element_ty), mask=place < elements)


@triton.jit(do_not_specialize=["rows", "programs"])
def _backward(
    GRAD,
    Z,
    D_Z,
    PARTIALS,
    rows,
    programs,
    grad_stride,
    COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    program = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    d_bias = tl.zeros((BLOCK_COLUMNS,), dtype=tl.float32)
    for first in range(program * BLOCK_ROWS, rows, programs * BLOCK_ROWS):
        row = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < COLUMNS)[None, :]
        place = row[:, None] * COLUMNS + column[None, :]
        z = tl.load(Z + place, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(GRAD + row[:, None] * grad_stride + column[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
        d_z = grad * (_distribution(z) + z * _density(z))
        tl.store(D_Z + place, d_z.to(D_Z.dtype.element_ty), mask=inside)
        if HAS_BIAS:
            d_bias += tl.sum(d_z, 0)
    if HAS_BIAS:
        # One row of partial sums per program instead of atomics; _bias_gradient adds them in a fixed order.
        tl.store(PARTIALS + program.to(tl.int64) * COLUMNS + column, d_bias, mask=column < COLUMNS)


@triton.jit(do_not_specialize=["programs"])
def _bias_gradient(
    PARTIALS, D_BIAS, programs, COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    d_bias = column_sum(PARTIALS, COLUMNS, programs, column, COLUMNS, BLOCK_ROWS, BLOCK_COLUMNS)
    tl.store(D_BIAS + column, d_bias, mask=column < COLUMNS)


@on_its_device
def forward(z: Tensor) -> Tensor:
    """Returns y, like `linear_gelu.forward_reference`, contiguous; a z that is not is copied."""
    z = z.contiguous()
    y = torch.empty_like(z)
    if z.numel():
        _forward[(ceil_div(z.numel(), ELEMENTS),)](
            z, y, z.numel(), BLOCK=ELEMENTS, num_warps=FORWARD_WARPS, num_stages=1, enable_fp_fusion=True
        )
    return y


@on_its_device
def backward(grad: Tensor, z: Tensor, has_bias: bool = True) -> tuple[Tensor, Tensor]:
    """Returns dz and db, like `linear_gelu.backward_reference`, but db in fp32."""
    z = z.contiguous()
    rows, columns = z.shape
    programs = min(
        ceil_div(ceil_div(rows, BLOCK_ROWS), TILES_PER_PROGRAM), MULTIPROCESSORS[architecture(z.device)]
    )
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    d_z = torch.empty_like(z)
    partials = torch.empty((programs, columns) if has_bias else 0, dtype=torch.float32, device=z.device)
    d_bias = torch.empty(columns if has_bias else 0, dtype=torch.float32, device=z.device)
    tile = {"COLUMNS": columns, "BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS}
    if rows:
        _backward[(programs, ceil_div(columns, BLOCK_COLUMNS))](
            grad, z, d_z, partials, rows, programs, grad.stride(0), **tile, HAS_BIAS=has_bias,
            num_warps=BACKWARD_WARPS, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    if not has_bias:
        return d_z, d_bias
    tile |= {"BLOCK_ROWS": TILE_ROWS, "BLOCK_COLUMNS": TILE_COLUMNS}
    _bias_gradient[(ceil_div(columns, TILE_COLUMNS),)](
        partials, d_bias, programs, **tile, num_warps=TILE_WARPS, num_stages=1, enable_fp_fusion=True
    )
    return d_z, d_bias


def launches() -> tuple[Launch, ...]:
    """Returns the configurations for FLAVA's MLP (3072); without a bias are `gelu_linear` and frozen ones."""
    return tuple(
        launch
        for arch in ARCHITECTURES
        for dtype in ("bf16", "fp16", "fp32")
        for launch in _launches(arch, dtype, 3072)
    )


def _launches(arch: str, dtype: str, columns: int) -> tuple[Launch, ...]:
    value, fp32, suffix = f"*{dtype}", "*fp32", f"{dtype}.{columns}"
    tile = {"COLUMNS": columns, "BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS}
    sums = {"COLUMNS": columns, "BLOCK_ROWS": TILE_ROWS, "BLOCK_COLUMNS": TILE_COLUMNS}
    backward_types = {
        "GRAD": value,
        "Z": value,
        "D_Z": value,
        "PARTIALS": fp32,
        "rows": "i32",
        "programs": "i32",
        "grad_stride": "i32",
    }
    made = [
        Launch(
            f"linear_gelu.forward.{suffix}",
            _forward,
            {"Z": value, "Y": value, "elements": "i32"},
            {"BLOCK": ELEMENTS},
            FORWARD_WARPS,
            1,
            arch,
        ),
    ]
    made += [
        Launch(
            f"linear_gelu.backward.{suffix}{'' if has_bias else '.no_bias'}",
            _backward,
            backward_types,
            tile | {"HAS_BIAS": has_bias},
            BACKWARD_WARPS,
            1,
            arch,
        )
        for has_bias in (True, False)
    ]
    if dtype == "bf16":  # partial sums are fp32 for every dtype
        types = {"PARTIALS": fp32, "D_BIAS": fp32, "programs": "i32"}
        made.append(Launch(f"linear_gelu.bias.{columns}", _bias_gradient, types, sums, TILE_WARPS, 1, arch))
    return tuple(made)
