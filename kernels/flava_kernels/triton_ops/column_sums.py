"""Sums over rows in a fixed order: adds the partial sums that programs of a backward pass leave.

Atomics would add them in the order in which programs finish. The number of programs depends only on the
architecture and the shape, so two runs on one machine add in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl

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
