"""Kernel of the sigmoid loss: one program per tile of S, which leaves its part of every sum and a tile of G.

S = scale * rows columns^T is never stored, and G = dloss/d(S + bias) only in chunks in L2, in the features'
dtype, as for the contrastive loss, whose products it shares.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flava_kernels.triton_ops.contrastive import chunks_of_gradient, from_memory, product, scores, tile_of
from flava_kernels.triton_ops.contrastive_tiles import FULL, HALF, Tiles, constants, options, tiles_of
from flava_kernels.triton_ops.launch import ARCHITECTURES, Launch, ceil_div, on_its_device

BLOCK_N = 64
"""Columns of a tile: with 128 in half precision, registers spill."""


@triton.jit
def _log1p(e):
    """log(1 + e) for e in [0, 1], as 2 artanh(e / (2 + e)): a small e is not rounded away.

    Seven terms leave out 1e-8 of it.
    """
    s = e / (2.0 + e)
    square = s * s
    series = 0.07692307692307693 * square + 0.09090909090909091
    series = series * square + 0.1111111111111111
    series = series * square + 0.14285714285714285
    series = series * square + 0.2
    series = series * square + 0.3333333333333333
    return 2.0 * (series * square * s + s)


@triton.jit(do_not_specialize=["num_rows", "num_columns", "offset"])
def _sigmoid_kernel(
    rows,
    columns,
    scale,
    bias,
    column_mask,
    gradient,
    part_max,
    part_place,
    part_loss,
    part_d_scale,
    part_d_bias,
    num_rows,
    num_columns,
    offset,
    width,
    gradient_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores [column tiles, b] each: the largest of a row's entries in the mask, and the first such column.
    Stores [programs] each: the tile's part of the loss, of sum G * S and of sum G. Stores its tile of G.
    """
    row, column, column_tile = tile_of(num_rows, num_columns, BLOCK_M, BLOCK_N)
    row_valid = row < num_rows
    column_valid = column < num_columns
    similarity = tl.load(scale) * scores(
        rows, columns, row, column, num_rows, num_columns, width, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
    )
    counted = tl.load(column_mask + column, mask=column_valid, other=0.0) > 0
    inside = row_valid[:, None] & counted[None, :]
    shown = tl.where(counted[None, :], similarity, float("-inf"))
    largest = tl.max(shown, 1)
    # the smallest column among equal entries
    place = tl.min(tl.where(shown == largest[:, None], column[None, :], num_columns), 1)
    target = column_tile.to(tl.int64) * num_rows + row
    tl.store(part_max + target, largest, mask=row_valid)
    tl.store(part_place + target, place, mask=row_valid)

    own = (row + offset)[:, None] == column[None, :]
    logits = similarity + tl.load(bias)
    against = tl.where(own, -logits, logits)  # -y z
    e = tl.math.exp2(-tl.abs(against) * 1.4426950408889634)
    loss = tl.maximum(against, 0.0) + _log1p(e)
    program = tl.program_id(0)
    tl.store(part_loss + program, tl.sum(tl.where(inside, loss, 0.0)))
    logistic = tl.where(against >= 0, 1.0, e) / (1.0 + e)
    g = tl.where(inside, tl.where(own, -logistic, logistic), 0.0)
    tl.store(part_d_scale + program, tl.sum(g * similarity))
    tl.store(part_d_bias + program, tl.sum(g))
    # Beyond num_columns g is zero; a mask at the padded stride keeps the stores wide.
    tl.store(
        gradient + row.to(tl.int64)[:, None] * gradient_stride + column[None, :],
        g.to(gradient.dtype.element_ty),
        mask=row_valid[:, None] & (column < gradient_stride)[None, :],
    )


@on_its_device
def forward(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    column_mask: Tensor,
    offset: int,
    gradients: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns loss, correct rows and gradients; shapes are those of the reference."""
    rows, columns, column_mask = rows.contiguous(), columns.contiguous(), column_mask.float().contiguous()
    tiles = _narrow(tiles_of(rows))
    (num_rows, width), num_columns = rows.shape, columns.shape[0]
    own = torch.arange(offset, offset + num_rows, device=rows.device)
    own_mask = column_mask[offset : offset + num_rows]
    loss, correct, d_scale, d_bias = (torch.zeros_like(scale) for _ in range(4))
    d_rows = scale.new_empty(num_rows if gradients[0] else 0, width)
    d_columns = scale.new_zeros(num_columns if gradients[1] else 0, width)
    column_tiles = ceil_div(num_columns, tiles.block_n)
    for chunk, memory in chunks_of_gradient(rows, num_columns, tiles):
        length = chunk.stop - chunk.start
        programs = ceil_div(length, tiles.block_m) * column_tiles
        part_max = scale.new_empty(column_tiles, length)
        part_place = torch.empty(column_tiles, length, dtype=torch.int32, device=rows.device)
        part_loss, part_d_scale, part_d_bias = (scale.new_empty(programs) for _ in range(3))
        _sigmoid_kernel[(programs,)](
            rows[chunk], columns, scale, bias, column_mask, memory, part_max, part_place, part_loss,
            part_d_scale, part_d_bias, length, num_columns, offset + chunk.start, width, memory.stride(0),
            **options(tiles),
        )  # fmt: skip
        place = part_place.masked_fill(part_max < part_max.amax(0), num_columns).amin(0)
        correct += ((place == own[chunk]) * own_mask[chunk]).sum()
        loss += part_loss.sum()
        d_scale += part_d_scale.sum()
        d_bias += part_d_bias.sum()
        gradient = memory[:, :num_columns]
        if gradients[0]:
            d_rows[chunk] = product(gradient, columns, tiles) * scale
        if gradients[1]:
            d_columns += product(gradient.T, rows[chunk], tiles)
    return loss, correct, d_rows, d_columns * scale, d_scale, d_bias


def _narrow(tiles: Tiles) -> Tiles:
    """Returns the contrastive loss's tiles with BLOCK_N columns."""
    return dataclasses.replace(tiles, block_n=BLOCK_N)


def launches() -> tuple[Launch, ...]:
    """Returns the kernel as launched, for every architecture and dtype."""
    return tuple(_launch(arch, dtype) for arch in ARCHITECTURES for dtype in ("bf16", "fp16", "fp32"))


def _launch(arch: str, dtype: str) -> Launch:
    tiles = _narrow(FULL[arch] if dtype == "fp32" else HALF[arch])
    types: dict[str, Any] = {"rows": f"*{dtype}", "columns": f"*{dtype}"}
    types |= dict.fromkeys(("scale", "bias", "column_mask"), "*fp32")
    types |= {"gradient": f"*{dtype}", "part_max": "*fp32", "part_place": "*i32"}
    types |= dict.fromkeys(("part_loss", "part_d_scale", "part_d_bias"), "*fp32")
    types |= dict.fromkeys(("num_rows", "num_columns", "offset", "width", "gradient_stride"), "i32")
    return Launch(
        f"sigmoid_loss.forward.{dtype}",
        _sigmoid_kernel,
        types,
        constants(tiles),
        tiles.num_warps,
        tiles.num_stages,
        arch,
        from_memory=from_memory(tiles),
    )
