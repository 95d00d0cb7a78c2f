"""LayerNorm with and without a residual.

A program owns several whole rows and keeps them in registers, so every tensor is read and written once.
"""

from __future__ import annotations

import dataclasses

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
    next_power_of_2,
    on_its_device,
)

ELEMENTS = {"sm_80": 4096, "sm_90": 4096, "sm_100": 4096, "gfx942": 4096}
"""Elements of each tensor per program, unless a single row has more."""

PROGRAMS_PER_MULTIPROCESSOR = {"sm_80": 2, "sm_90": 2, "sm_100": 2, "gfx942": 2}
"""Maximum number of backward programs: each leaves one row of partial sums."""

TILES_PER_PROGRAM = 4
"""Minimum number of tiles per backward program: its partial sums are read again."""


@triton.jit
def _mean(x, columns: tl.constexpr, EXACT: tl.constexpr):
    """Returns each row's mean; its quotient is correctly rounded if EXACT, else up to two last places off."""
    total = tl.sum(x, 1)
    return tl.div_rn(total, columns * 1.0) if EXACT else total / columns


@triton.jit
def _inverse_root(x, EXACT: tl.constexpr):
    return tl.div_rn(1.0, tl.sqrt_rn(x)) if EXACT else 1.0 / tl.sqrt(x)


@triton.jit
def _centred(x, center, inside, columns: tl.constexpr, EXACT: tl.constexpr):
    """Returns x - mean(x), zero outside; `center` is the mean rounded to fp32.

    A second pass subtracts what the rounding missed: with a large mean, that may exceed the row's spread.
    """
    x = tl.where(inside, x - center[:, None], 0.0)
    return tl.where(inside, x - _mean(x, columns, EXACT)[:, None], 0.0)


@triton.jit
def _over_rows(x, NOW: tl.constexpr):
    """Returns what a tile adds to a sum over rows: the sum of its own [1 n] if NOW, else all of them [r n].

    Rows of 16-bit numbers lie in several warps, so that their sum costs shared memory and two barriers, which
    a loop may leave for its end. fp32 tiles have all rows of a column in one thread, and no registers left.
    """
    return tl.sum(x, 0, keep_dims=True) if NOW else x


@triton.jit(do_not_specialize=["rows"])
def _forward(
    X, RESIDUAL, WEIGHT, BIAS, Y, TOTAL, MEAN, RSTD, rows, x_stride, residual_stride, eps,
    COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_COLUMNS)
    inside = (row < rows)[:, None] & (column < COLUMNS)[None, :]
    out = row[:, None] * COLUMNS + column[None, :]
    x = tl.load(X + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(RESIDUAL + row[:, None] * residual_stride + column[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
        # Rounded before it is normalised, since the backward pass and the next layer read the rounded sum.
        rounded = x.to(TOTAL.dtype.element_ty)
        tl.store(TOTAL + out, rounded, mask=inside)
        x = rounded.to(tl.float32)
    EXACT: tl.constexpr = X.dtype.element_ty == tl.float32
    mean = _mean(x, COLUMNS, EXACT)
    x = _centred(x, mean, inside, COLUMNS, EXACT)
    rstd = _inverse_root(_mean(x * x, COLUMNS, EXACT) + eps, EXACT)
    weight = tl.load(WEIGHT + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    bias = tl.load(BIAS + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    y = x * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(Y + out, y.to(Y.dtype.element_ty), mask=inside)
    tl.store(MEAN + row, mean, mask=row < rows)
    tl.store(RSTD + row, rstd, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "programs"])
def _backward(
    GRAD, GRAD_TOTAL, TOTAL, WEIGHT, MEAN, RSTD, D_TOTAL, PARTIALS, rows, programs,
    grad_stride, grad_total_stride, total_stride,
    COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    HAS_GRAD_TOTAL: tl.constexpr, PARAMETERS: tl.constexpr, BIAS_OF_X: tl.constexpr,
):  # fmt: skip
    EXACT: tl.constexpr = TOTAL.dtype.element_ty == tl.float32
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK_COLUMNS)
    # Loaded once: the program keeps the same columns for all its rows.
    weight = tl.load(WEIGHT + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    SUMMED_ROWS: tl.constexpr = 1 if EXACT else BLOCK_ROWS
    d_weight = tl.zeros((SUMMED_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    d_bias = tl.zeros((SUMMED_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    d_x_bias = tl.zeros((SUMMED_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for first in range(program * BLOCK_ROWS, rows, programs * BLOCK_ROWS):
        row = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < COLUMNS)[None, :]
        grad = tl.load(GRAD + row[:, None] * grad_stride + column[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
        x = tl.load(TOTAL + row[:, None] * total_stride + column[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
        mean = tl.load(MEAN + row, mask=row < rows, other=0.0)
        rstd = tl.load(RSTD + row, mask=row < rows, other=0.0)
        normed = _centred(x, mean, inside, COLUMNS, EXACT) * rstd[:, None]
        weighted = grad * weight[None, :]
        along = _mean(weighted * normed, COLUMNS, EXACT)
        centred = weighted - _mean(weighted, COLUMNS, EXACT)[:, None]
        d_total = (centred - normed * along[:, None]) * rstd[:, None]
        if HAS_GRAD_TOTAL:
            d_total += tl.load(
                GRAD_TOTAL + row[:, None] * grad_total_stride + column[None, :], mask=inside, other=0.0
            ).to(tl.float32)
        tl.store(
            D_TOTAL + row[:, None] * COLUMNS + column[None, :],
            d_total.to(D_TOTAL.dtype.element_ty),
            mask=inside,
        )
        if PARAMETERS:
            d_weight += _over_rows(grad * normed, EXACT)
            d_bias += _over_rows(grad, EXACT)
        if BIAS_OF_X:
            d_x_bias += _over_rows(d_total, EXACT)  # before it is rounded
    # One row of partial sums per program instead of atomics; _parameter_gradients adds them in order.
    place = PARTIALS + program.to(tl.int64) * ((2 * PARAMETERS + BIAS_OF_X) * COLUMNS) + column
    if PARAMETERS:
        tl.store(place, tl.sum(d_weight, 0), mask=column < COLUMNS)
        tl.store(place + COLUMNS, tl.sum(d_bias, 0), mask=column < COLUMNS)
    if BIAS_OF_X:
        tl.store(place + 2 * PARAMETERS * COLUMNS, tl.sum(d_x_bias, 0), mask=column < COLUMNS)


@triton.jit(do_not_specialize=["programs"])
def _parameter_gradients(
    PARTIALS,
    D_WEIGHT,
    D_BIAS,
    D_X_BIAS,
    programs,
    COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PARAMETERS: tl.constexpr,
    BIAS_OF_X: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    STRIDE: tl.constexpr = (2 * PARAMETERS + BIAS_OF_X) * COLUMNS
    if PARAMETERS:
        d_weight = column_sum(PARTIALS, STRIDE, programs, column, COLUMNS, BLOCK_ROWS, BLOCK_COLUMNS)
        d_bias = column_sum(PARTIALS + COLUMNS, STRIDE, programs, column, COLUMNS, BLOCK_ROWS, BLOCK_COLUMNS)
        tl.store(D_WEIGHT + column, d_weight.to(D_WEIGHT.dtype.element_ty), mask=column < COLUMNS)
        tl.store(D_BIAS + column, d_bias.to(D_BIAS.dtype.element_ty), mask=column < COLUMNS)
    if BIAS_OF_X:
        PARTIALS += 2 * PARAMETERS * COLUMNS
        d_x_bias = column_sum(PARTIALS, STRIDE, programs, column, COLUMNS, BLOCK_ROWS, BLOCK_COLUMNS)
        tl.store(D_X_BIAS + column, d_x_bias.to(D_X_BIAS.dtype.element_ty), mask=column < COLUMNS)


@on_its_device
def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y, s, m and q, like `layer_norm.forward_reference`."""
    rows, columns = x.shape
    y = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(y)
    mean, rstd = (torch.empty((rows, 1), dtype=torch.float32, device=x.device) for _ in range(2))
    tile, warps = _tile(columns, architecture(x.device))
    if rows:
        _forward[(ceil_div(rows, tile["BLOCK_ROWS"]),)](
            x, x if residual is None else residual, weight, bias, y, total, mean, rstd, rows, x.stride(0),
            0 if residual is None else residual.stride(0), eps,
            COLUMNS=columns, **tile, HAS_RESIDUAL=residual is not None,
            num_warps=warps, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return y, total, mean, rstd


@on_its_device
def backward(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    parameters: bool = True,
    x_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns ds, dw, db and the gradient of x's bias, like `layer_norm.backward_reference`."""
    rows, columns = total.shape
    arch = architecture(total.device)
    tile, warps = _tile(columns, arch)
    tiles = ceil_div(rows, tile["BLOCK_ROWS"])
    programs = min(
        ceil_div(tiles, TILES_PER_PROGRAM), PROGRAMS_PER_MULTIPROCESSOR[arch] * MULTIPROCESSORS[arch]
    )
    grad = _with_whole_rows(grad)
    grad_total = None if grad_total is None else _with_whole_rows(grad_total)
    d_total = torch.empty((rows, columns), dtype=total.dtype, device=total.device)
    sums = 2 * parameters + (x_bias is not None)
    partials = torch.empty((programs, sums, columns), dtype=torch.float32, device=total.device)
    if rows:
        _backward[(programs,)](
            grad, grad if grad_total is None else grad_total, total, weight, mean, rstd, d_total, partials,
            rows, programs,
            grad.stride(0), 0 if grad_total is None else grad_total.stride(0), total.stride(0),
            COLUMNS=columns, **tile, HAS_GRAD_TOTAL=grad_total is not None, PARAMETERS=parameters,
            BIAS_OF_X=x_bias is not None, num_warps=warps, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    d_weight, d_bias = (own.new_empty(own.shape if parameters else 0) for own in (weight, bias))
    d_x_bias = total.new_empty(0) if x_bias is None else x_bias.new_empty(x_bias.shape)
    if sums:
        _parameter_gradients[(ceil_div(columns, TILE_COLUMNS),)](
            partials, d_weight, d_bias, d_x_bias, programs,
            COLUMNS=columns, BLOCK_ROWS=TILE_ROWS, BLOCK_COLUMNS=TILE_COLUMNS,
            PARAMETERS=parameters, BIAS_OF_X=x_bias is not None,
            num_warps=TILE_WARPS, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return d_total, d_weight, d_bias, d_x_bias


def _tile(columns: int, arch: str) -> tuple[dict[str, int], int]:
    """Returns a tile's rows and columns, and its warps: 16 above 4096 padded columns, else 8."""
    block = next_power_of_2(columns)
    rows = max(1, ELEMENTS[arch] // block)
    return {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": block}, 8 if block <= 4096 else 16


def _with_whole_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def launches() -> tuple[Launch, ...]:
    """Returns the configurations for FLAVA's widths.

    These include a width that is no power of two (768), the largest one, half-precision rows with fp32
    parameters, backward passes that sum the gradient of x's bias too, and those for parameters that are
    frozen.
    """
    shapes = (("bf16", 768), ("bf16", 1024), ("bf16", 8192), ("fp16", 768), ("fp32", 768))
    found = [
        launch
        for arch in ARCHITECTURES
        for dtype, columns in shapes
        for launch in _launches(arch, dtype, columns, True)
    ]
    found += [launch for arch in ARCHITECTURES for launch in _launches(arch, "bf16", 768, False)]
    mixed = [
        launch
        for arch in ARCHITECTURES
        for dtype in ("bf16", "fp16")
        for launch in _launches(arch, dtype, 768, True, parameters="fp32")
    ]
    folding = [
        dataclasses.replace(
            launch, name=f"{launch.name}.x_bias", constexprs=launch.constexprs | {"BIAS_OF_X": True}
        )
        for launch in found
        if launch.name.startswith("add_layer_norm") and "BIAS_OF_X" in launch.constexprs
    ]
    frozen = [
        dataclasses.replace(
            launch, name=f"{launch.name}.frozen", constexprs=launch.constexprs | {"PARAMETERS": False}
        )
        for launch in (*found, *folding)
        if launch.name.endswith(
            (
                ".backward.bf16.768",
                ".backward.fp32.768",
                "backward.bf16.768.x_bias",
                "parameters.bf16.768.x_bias",
            )
        )
    ]
    # sums of fp32 partials into fp32 are already listed
    return (*found, *(launch for launch in mixed if ".parameters." not in launch.name), *folding, *frozen)


def _launches(
    arch: str, dtype: str, columns: int, residual: bool, parameters: str = ""
) -> tuple[Launch, ...]:
    value, fp32 = f"*{dtype}", "*fp32"
    tile, warps = _tile(columns, arch)
    prefix, suffix = (
        ("add_layer_norm" if residual else "layer_norm"),
        f"{dtype}.{columns}" + (f".{parameters}_parameters" if parameters else ""),
    )
    parameter = f"*{parameters or dtype}"
    reads = (
        dict.fromkeys(("X", "RESIDUAL", "Y", "TOTAL"), value)
        | dict.fromkeys(("WEIGHT", "BIAS"), parameter)
        | dict.fromkeys(("MEAN", "RSTD"), fp32)
    )
    forward_types = reads | {"rows": "i32", "x_stride": "i32", "residual_stride": "i32", "eps": "fp32"}
    tensors = dict.fromkeys(("GRAD", "GRAD_TOTAL", "TOTAL"), value) | {
        "WEIGHT": parameter,
        "MEAN": fp32,
        "RSTD": fp32,
        "D_TOTAL": value,
        "PARTIALS": fp32,
    }
    backward_types = tensors | dict.fromkeys(
        ("rows", "programs", "grad_stride", "grad_total_stride", "total_stride"), "i32"
    )
    constants = {"COLUMNS": columns, **tile, "HAS_RESIDUAL": residual}
    moved = tile["BLOCK_ROWS"] * (4 if residual else 2) * (4 if dtype == "fp32" else 2)
    once = moved / (moved + 2 * (4 if parameter == fp32 else 2))  # every program reads weight and bias again
    made = [
        Launch(
            f"{prefix}.forward.{suffix}", _forward, forward_types, constants, warps, 1, arch, from_memory=once
        ),
        Launch(
            f"{prefix}.backward.{suffix}",
            _backward,
            backward_types,
            {
                "COLUMNS": columns,
                **tile,
                "HAS_GRAD_TOTAL": residual,
                "PARAMETERS": True,
                "BIAS_OF_X": False,
            },
            warps,
            1,
            arch,
        ),
    ]
    if residual:
        results = {"D_WEIGHT": parameter, "D_BIAS": parameter, "D_X_BIAS": value}
        types = {"PARTIALS": fp32, **results, "programs": "i32"}
        constants = {"COLUMNS": columns, "BLOCK_ROWS": TILE_ROWS, "BLOCK_COLUMNS": TILE_COLUMNS}
        constants |= {"PARAMETERS": True, "BIAS_OF_X": False}
        made.append(
            Launch(
                f"{prefix}.parameters.{suffix}", _parameter_gradients, types, constants, TILE_WARPS, 1, arch
            )
        )
    return tuple(made)
