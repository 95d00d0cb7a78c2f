"""Sums over rows in a fixed order: adds the partial sums that programs of a backward pass leave.

Atomics would add them in the order in which programs finish. The number of programs depends only on the
architecture and the shape, so two runs on one machine add in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flava_kernels.triton_ops.launch import ceil_div, on_its_device

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}
"""Backward passes launch programs in proportion to these."""

TILE_ROWS, TILE_COLUMNS, TILE_WARPS = 32, 64, 4
"""Tile and warps of a program that adds partial sums."""


@triton.jit
def column_sum(
    PARTIALS, stride, rows, columns, number_of_columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """Returns the sums of fp32 rows for a block of `columns`; zero from `number_of_columns` on."""
    inside = columns < number_of_columns
    total = tl.zeros((BLOCK_COLUMNS,), dtype=tl.float32)
    for first in range(0, rows, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        places = row[:, None].to(tl.int64) * stride + columns[None, :]
        total += tl.sum(
            tl.load(PARTIALS + places, mask=(row < rows)[:, None] & inside[None, :], other=0.0), 0
        )
    return total


@triton.jit(do_not_specialize=["rows"])
def add_partial_sums(
    PARTIALS, TOTAL, rows, COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """PARTIALS [n c] fp32 -> TOTAL [c], in the order of the rows."""
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    total = column_sum(PARTIALS, COLUMNS, rows, column, COLUMNS, BLOCK_ROWS, BLOCK_COLUMNS)
    tl.store(TOTAL + column, total.to(TOTAL.dtype.element_ty), mask=column < COLUMNS)


@on_its_device
def added(partials: Tensor, like: Tensor) -> Tensor:
    """Adds rows of fp32 partial sums: [n c] -> c elements in the shape and dtype of `like`."""
    rows, columns = partials.shape
    total = torch.empty(like.shape, dtype=like.dtype, device=partials.device)
    add_partial_sums[(ceil_div(columns, TILE_COLUMNS),)](
        partials, total, rows, COLUMNS=columns, BLOCK_ROWS=TILE_ROWS, BLOCK_COLUMNS=TILE_COLUMNS,
        num_warps=TILE_WARPS, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return total
