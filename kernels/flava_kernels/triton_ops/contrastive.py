"""Kernels of the contrastive loss: S = scale * rows columns^T is never stored, and G only in chunks in L2.

forward   one program per row tile and part of the columns: tiles of S in registers, an online log-sum-exp,
          the row's own and largest entries; a few vector operations combine the parts
backward  one program per tile of G, which is written in the features' dtype, CHUNK_BYTES at a time; the
          gradients are matrix products with it: torch's for 16-bit features and on AMD, else ours
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flava_kernels.contrastive import shifts
from flava_kernels.triton_ops.contrastive_tiles import FULL, HALF, Tiles, constants, options, tiles_of
from flava_kernels.triton_ops.launch import ARCHITECTURES, Launch, ceil_div, on_its_device

LOG2_E = math.log2(math.e)

CHUNK_BYTES = {2: 24 * 2**20, 4: 96 * 2**20}
"""Size of a chunk of G, by the bytes of a number: half of an H100's L2 cache for 16-bit features.

For fp32, whose products take three times as long, more rows matter more: 768 at 32,768 columns.
"""

TARGET_PROGRAMS = 512
"""The forward kernel splits the columns into parts until there are about this many programs."""

EXAMPLE_SIZES = 4096, 32768
"""Rows and columns for the static estimate: one of eight ranks."""

GROUP = tl.constexpr(8)
"""Row tiles of G that run side by side, sharing the columns' features in the L2 cache."""


@triton.jit
def tile_of(num_rows, num_columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Returns this program's rows and columns, and the number of its column tile.

    Tiles run in groups of GROUP row tiles per column tile instead of row by row, for reuse in the L2 cache.
    """
    program = tl.program_id(0)
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    column_tiles = tl.cdiv(num_columns, BLOCK_N)
    group = program // (GROUP * column_tiles)
    rows_of_group = tl.minimum(row_tiles - group * GROUP, GROUP)
    inside = program % (GROUP * column_tiles)
    column_tile = inside // rows_of_group
    row = (group * GROUP + inside % rows_of_group) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    return row, column, column_tile


@triton.jit
def scores(
    rows,
    columns,
    row,
    column,
    num_rows,
    num_columns,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Returns a tile of rows columns^T in fp32; zero beyond both."""
    row_valid = row < num_rows
    column_valid = column < num_columns
    row_start = row.to(tl.int64) * width
    column_start = column.to(tl.int64) * width
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, width, BLOCK_K):
        feature = k + tl.arange(0, BLOCK_K)
        feature_valid = feature < width
        a = tl.load(
            rows + row_start[:, None] + feature[None, :],
            mask=row_valid[:, None] & feature_valid[None, :],
            other=0.0,
        )
        b = tl.load(
            columns + column_start[None, :] + feature[:, None],
            mask=column_valid[None, :] & feature_valid[:, None],
            other=0.0,
        )
        product = tl.dot(a, b, product, input_precision=PRECISION)
    return product


@triton.jit(do_not_specialize=["num_rows", "num_columns", "offset", "tiles_per_part"])
def _forward_kernel(
    rows,
    columns,
    scale,
    part_max,
    part_sum,
    part_place,
    part_own,
    num_rows,
    num_columns,
    offset,
    width,
    tiles_per_part,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores [parts b] each: maximum (base 2), sum of exponentials, first maximum's column, own entry."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    row_valid = row < num_rows
    factor = tl.load(scale) * 1.4426950408889634
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    place = tl.zeros((BLOCK_M,), tl.int32)
    own = tl.zeros((BLOCK_M,), tl.float32)
    first_column = part * tiles_per_part * BLOCK_N
    end = tl.minimum(first_column + tiles_per_part * BLOCK_N, num_columns)
    for start in range(first_column, end, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        column_valid = column < num_columns
        product = scores(
            rows, columns, row, column, num_rows, num_columns, width, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
        )
        logits = tl.where(column_valid[None, :], product * factor, float("-inf"))
        # In base 2, like the maximum. At most one part has a row's own column; _statistics adds the parts.
        own += tl.sum(tl.where((row + offset)[:, None] == column[None, :], product * factor, 0.0), 1)
        tile_max = tl.max(logits, 1)
        # The smallest column among equal entries, so that ties do not depend on how the columns are split.
        tile_place = tl.min(tl.where(logits == tile_max[:, None], column[None, :], num_columns), 1)
        # Strictly greater: on a tie with earlier tiles the earlier column stays.
        place = tl.where(tile_max > largest, tile_place, place)
        raised = tl.maximum(largest, tile_max)
        total = total * tl.math.exp2(largest - raised) + tl.sum(tl.math.exp2(logits - raised[:, None]), 1)
        largest = raised
    target = part.to(tl.int64) * num_rows + row
    tl.store(part_max + target, largest, mask=row_valid)
    tl.store(part_sum + target, total, mask=row_valid)
    tl.store(part_place + target, place, mask=row_valid)
    tl.store(part_own + target, own, mask=row_valid)


@triton.jit(do_not_specialize=["num_rows", "num_columns", "offset"])
def _gradient_kernel(
    rows,
    columns,
    scale,
    row_shift,
    column_shift,
    row_mask,
    gradient,
    part_d_scale,
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
    """One tile of G [b N], and its part of sum G * S.

    G's stride is a multiple of 16, and the columns beyond N are written too, so that stores are wide for any
    N.
    """
    row, column, _ = tile_of(num_rows, num_columns, BLOCK_M, BLOCK_N)
    row_valid = row < num_rows
    column_valid = column < num_columns
    product = scores(
        rows, columns, row, column, num_rows, num_columns, width, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
    )
    logits = product * tl.load(scale)
    # A shift of inf (masked or past the end) makes the exponential zero.
    row_term = logits - tl.load(row_shift + row, mask=row_valid, other=float("inf"))[:, None]
    column_term = logits - tl.load(column_shift + column, mask=column_valid, other=float("inf"))[None, :]
    own = (row + offset)[:, None] == column[None, :]
    matched = tl.load(row_mask + row, mask=row_valid, other=0.0)
    g = tl.math.exp2(row_term * 1.4426950408889634) + tl.math.exp2(column_term * 1.4426950408889634)
    g -= tl.where(own, 2.0 * matched[:, None], 0.0)
    g = tl.where(row_valid[:, None] & column_valid[None, :], g, 0.0)
    target = gradient + row.to(tl.int64)[:, None] * gradient_stride + column[None, :]
    # Beyond num_columns g is zero; a mask at the padded stride keeps the stores wide.
    tl.store(
        target, g.to(gradient.dtype.element_ty), mask=row_valid[:, None] & (column < gradient_stride)[None, :]
    )
    tl.store(part_d_scale + tl.program_id(0), tl.sum(g * logits))


# Specialised on the divisibility of num_rows: otherwise the mask would make a transposed load scalar.
@triton.jit
def _product_kernel(
    a, b, out, num_rows, num_columns, inner, stride, TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a b in fp32: [m k], or its transpose in memory, [k n] -> [m n]; `stride` is a's."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, inner, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        if TRANSPOSED:
            place = k.to(tl.int64)[None, :] * stride + row[:, None]
        else:
            place = row.to(tl.int64)[:, None] * stride + k[None, :]
        left = tl.load(a + place, mask=(row < num_rows)[:, None] & (k < inner)[None, :], other=0.0)
        right = tl.load(
            b + k.to(tl.int64)[:, None] * num_columns + column[None, :],
            mask=(k < inner)[:, None] & (column < num_columns)[None, :],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(
        out + row.to(tl.int64)[:, None] * num_columns + column[None, :],
        total,
        mask=(row < num_rows)[:, None] & (column < num_columns)[None, :],
    )


@on_its_device
def forward(
    rows: Tensor, columns: Tensor, scale: Tensor, offset: int, both: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns log-sum-exps of rows (and columns if `both`), own entries, and whether they are first maxima.

    Shapes are those of the reference.
    """
    rows, columns = rows.contiguous(), columns.contiguous()
    row_lse, own, place = _statistics(rows, columns, scale, offset)
    # The columns' statistics are those of the transposed matrix: swapped arguments, negative offset.
    column_lse = _statistics(columns, rows, scale, -offset)[0] if both else scale.new_empty(0)
    first = place == torch.arange(offset, offset + rows.shape[0], device=rows.device)
    return row_lse, column_lse, own, first.to(scale.dtype)


@on_its_device
def backward(
    grad: Tensor,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_vectors: Tensor,
    column_vectors: Tensor,
    offset: int,
    both: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns gradients of rows, of columns if `both`, and of the log scale; shapes as in the reference."""
    rows, columns, tiles = rows.contiguous(), columns.contiguous(), tiles_of(rows)
    (num_columns, width), factor = columns.shape, scale * grad / 2
    row_shift, column_shift = shifts(row_vectors), shifts(column_vectors)
    d_rows, d_scale = torch.empty_like(rows), torch.zeros_like(scale)
    # fp32, because it accumulates over chunks; rounded once at the end.
    d_columns = scale.new_zeros(num_columns if both else 0, width)
    for chunk, gradient in chunks_of_gradient(rows, num_columns, tiles):
        length = chunk.stop - chunk.start
        programs = ceil_div(length, tiles.block_m) * ceil_div(num_columns, tiles.block_n)
        part_d_scale = scale.new_empty(programs)
        _gradient_kernel[(programs,)](
            rows[chunk], columns, scale, row_shift[chunk], column_shift, row_vectors[1, chunk], gradient,
            part_d_scale, length, num_columns, offset + chunk.start, width, gradient.stride(0),
            **options(tiles),
        )  # fmt: skip
        gradient = gradient[:, :num_columns]
        d_rows[chunk] = product(gradient, columns, tiles) * factor
        d_scale += part_d_scale.sum()
        if both:
            d_columns += product(gradient.T, rows[chunk], tiles)
    return d_rows, (d_columns * factor).to(columns.dtype), d_scale * grad / 2


def launches() -> tuple[Launch, ...]:
    """Returns every kernel as launched, for every architecture and dtype."""
    return tuple(
        launch
        for arch in ARCHITECTURES
        for dtype in ("bf16", "fp16", "fp32")
        for launch in _launches(arch, dtype)
    )


def from_memory(tiles: Tiles) -> float:
    """Returns the share of what tiles of S read that has to come from memory: every feature once."""
    rows, columns = EXAMPLE_SIZES
    read = rows * columns * (tiles.block_m + tiles.block_n)
    return (rows + columns) * tiles.block_m * tiles.block_n / read


def _launches(arch: str, dtype: str) -> tuple[Launch, ...]:
    tiles = FULL[arch] if dtype == "fp32" else HALF[arch]
    features = {"rows": f"*{dtype}", "columns": f"*{dtype}", "scale": "*fp32"}
    sizes = {"num_rows": "i32", "num_columns": "i32", "offset": "i32", "width": "i32"}
    parts = {"part_max": "*fp32", "part_sum": "*fp32", "part_place": "*i32", "part_own": "*fp32"}
    vectors = {"row_shift": "*fp32", "column_shift": "*fp32", "row_mask": "*fp32"}
    forward_signature = features | parts | sizes | {"tiles_per_part": "i32"}
    gradient_signature = (
        features
        | vectors
        | {"gradient": f"*{dtype}", "part_d_scale": "*fp32"}
        | sizes
        | {"gradient_stride": "i32"}
    )
    kernels: list[tuple[str, Any, dict[str, str], dict[str, bool]]] = [
        ("forward", _forward_kernel, forward_signature, {}),
        ("gradient", _gradient_kernel, gradient_signature, {}),
    ]
    if tiles.precision != "ieee":
        product = dict.fromkeys(("a", "b", "out"), "*fp32")
        product |= dict.fromkeys(("num_rows", "num_columns", "inner", "stride"), "i32")
        for name, transposed in (("product", False), ("product_transposed", True)):
            kernels.append((name, _product_kernel, product, {"TRANSPOSED": transposed}))
    return tuple(
        Launch(
            f"info_nce.{way}.{dtype}",
            kernel,
            types,
            constants(tiles) | more,
            tiles.num_warps,
            tiles.num_stages,
            arch,
            from_memory=from_memory(tiles),
        )
        for way, kernel, types, more in kernels
    )


def _statistics(rows: Tensor, columns: Tensor, scale: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log-sum-exp, own entry and column of the first maximum of each row: [b] each."""
    tiles, num_rows, num_columns = tiles_of(rows), rows.shape[0], columns.shape[0]
    row_tiles, column_tiles = ceil_div(num_rows, tiles.block_m), ceil_div(num_columns, tiles.block_n)
    tiles_per_part = ceil_div(column_tiles, ceil_div(TARGET_PROGRAMS, row_tiles))
    parts = ceil_div(column_tiles, tiles_per_part)
    part_max, part_sum, part_own = (scale.new_empty(parts, num_rows) for _ in range(3))
    part_place = torch.empty(parts, num_rows, dtype=torch.int32, device=rows.device)
    _forward_kernel[(row_tiles, parts)](
        rows, columns, scale, part_max, part_sum, part_place, part_own, num_rows, num_columns, offset,
        rows.shape[1], tiles_per_part, **options(tiles),
    )  # fmt: skip
    # Combines the parts like a further step of the online log-sum-exp.
    largest = part_max.amax(0)
    total = (part_sum * (part_max - largest).exp2()).sum(0)
    place = part_place.masked_fill(part_max < largest, num_columns).amin(0)
    return (largest + total.log2()) / LOG2_E, part_own.sum(0) / LOG2_E, place


def chunks_of_gradient(rows: Tensor, num_columns: int, tiles: Tiles) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of rows, and a buffer for their part of G, which is reused: [chunk, N or a few more], its
    stride a multiple of 16.
    """
    size, stride = rows.element_size(), ceil_div(num_columns, 16) * 16
    most = max(1, CHUNK_BYTES[size] // (stride * size * tiles.block_m)) * tiles.block_m
    memory = rows.new_empty(min(most, rows.shape[0]), stride)
    for start in range(0, rows.shape[0], most):
        stop = min(start + most, rows.shape[0])
        yield slice(start, stop), memory[: stop - start]


@on_its_device
def product(a: Tensor, b: Tensor, tiles: Tiles) -> Tensor:
    """Returns a b in fp32: [m k], one of whose axes is contiguous, [k n] contiguous -> [m n]."""
    if tiles.precision == "ieee":
        if a.is_cuda and a.dtype != torch.float32:
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()
    (rows, inner), columns, transposed = a.shape, b.shape[1], a.stride(0) == 1
    out = torch.empty((rows, columns), dtype=torch.float32, device=a.device)
    grid = (ceil_div(rows, tiles.block_m), ceil_div(columns, tiles.block_n))
    _product_kernel[grid](
        a, b, out, rows, columns, inner, a.stride(1) if transposed else a.stride(0), transposed,
        **options(tiles),
    )  # fmt: skip
    return out
