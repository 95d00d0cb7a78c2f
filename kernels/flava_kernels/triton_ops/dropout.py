"""The kernel of dropout, forward and backward: a program hashes and scales a tile of rows.

Half of a row's hash is computed once for all columns of a tile. Everything unsigned wraps around.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flava_kernels import dropout as formula
from flava_kernels.triton_ops.launch import ARCHITECTURES, Launch, ceil_div, on_its_device
from flava_kernels.triton_ops.packing import LISTED_TYPES, OPTIONS, TILE_ROWS, tile_columns

GAMMA, MIX_1, MIX_2 = (tl.constexpr(value) for value in (formula.GAMMA, formula.MIX_1, formula.MIX_2))
COLUMN, FMIX_1, FMIX_2 = (tl.constexpr(value) for value in (formula.COLUMN, formula.FMIX_1, formula.FMIX_2))
LOW = tl.constexpr(formula.LOW)


@triton.jit
def _mix64(value):
    """See dropout.mix64, for uint64."""
    value = (value ^ (value >> 30)) * MIX_1
    value = (value ^ (value >> 27)) * MIX_2
    return value ^ (value >> 31)


@triton.jit(do_not_specialize=["rows", "stream"])
def drop(
    X, KEYS, Y, rows, stream, x_stride, width, scale,
    THRESHOLD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Writes Y [T d], which is contiguous; `x_stride` counts elements."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    key = tl.load(KEYS + row, mask=row < rows, other=0).to(tl.uint64)
    state = _mix64(key + (stream.to(tl.uint64) + 1) * GAMMA)
    low, high = (state & LOW).to(tl.uint32), (state >> 32).to(tl.uint32)
    hashed = low[:, None] + (column.to(tl.uint32) * COLUMN)[None, :]
    hashed = ((hashed ^ (hashed >> 16)) * FMIX_1) ^ high[:, None]
    hashed = (hashed ^ (hashed >> 13)) * FMIX_2
    x = tl.load(X + row.to(tl.int64)[:, None] * x_stride + column[None, :], mask=mask, other=0.0)
    y = tl.where(hashed >= THRESHOLD, x.to(tl.float32) * scale, 0.0)
    tl.store(Y + row.to(tl.int64)[:, None] * width + column[None, :], y.to(Y.dtype.element_ty), mask=mask)


@on_its_device
def dropout(x: Tensor, keys: Tensor, stream: int, p: float) -> Tensor:
    """Runs `drop`; arguments as in flava_kernels.dropout."""
    rows, width = x.shape
    y = x.new_empty(rows, width)
    if y.numel() > 0:
        columns = tile_columns(width)
        grid = (ceil_div(rows, TILE_ROWS), ceil_div(width, columns))
        drop[grid](
            x, keys.contiguous(), y, rows, stream, x.stride(0), width, 1 / (1 - p),
            THRESHOLD=formula.threshold_of(p), ROWS=TILE_ROWS, COLUMNS=columns, **OPTIONS,
        )  # fmt: skip
    return y


def launches() -> tuple[Launch, ...]:
    """Lists the configurations for rows of 768 and a probability of 0.1."""
    constexprs = {
        "THRESHOLD": formula.threshold_of(0.1),
        "ROWS": TILE_ROWS,
        "COLUMNS": tile_columns(768),
    }
    integers = dict.fromkeys(("rows", "stream", "x_stride", "width"), "i32")
    return tuple(
        Launch(
            f"dropout.{name}.768",
            drop,
            {"X": f"*{name}", "KEYS": "*i64", "Y": f"*{name}", "scale": "fp32", **integers},
            constexprs,
            4,
            1,
            arch,
        )
        for arch in ARCHITECTURES
        for name in LISTED_TYPES
    )
