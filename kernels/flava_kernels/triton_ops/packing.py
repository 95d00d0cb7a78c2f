"""Kernels of `pack` and `unpack`: a program moves a tile of one sequence's rows.

Programs read their sequence's length from cu_seqlens; those past its end read nothing. A tile has a power of
two of columns, up to 256, so that a warp moves one row of bf16 with 16-byte accesses.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from flava_kernels.triton_ops.launch import (
    ARCHITECTURES,
    Launch,
    ceil_div,
    next_power_of_2,
    on_its_device,
)

TILE_ROWS = 16
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
LISTED_TYPES = ("bf16", "fp16", "fp32")
"""Dtypes that are compiled ahead of time."""


def tile_columns(width: int) -> int:
    """Returns a tile's columns for rows of `width`."""
    return min(next_power_of_2(max(width, 1)), 256)


@triton.jit
def pack_rows(
    padded,
    packed,
    cu_seqlens,
    sequence_stride,
    padded_stride,
    packed_stride,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Copies padded [b s d] to packed [T d]; strides count elements."""
    # Axis 2 is the sequence, axis 0 the tiles of the longest one; rows past a shorter one are masked.
    sequence = tl.program_id(2)
    start = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - start
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < length)[:, None] & (column < width)[None, :]
    source = (
        padded
        + sequence.to(tl.int64) * sequence_stride
        + row.to(tl.int64)[:, None] * padded_stride
        + column[None, :]
    )
    target = packed + (start + row).to(tl.int64)[:, None] * packed_stride + column[None, :]
    tl.store(target, tl.load(source, mask=mask, other=0.0), mask=mask)


@triton.jit(do_not_specialize=["max_seqlen"])
def unpack_rows(
    packed, padded, cu_seqlens, packed_stride, width, max_seqlen, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Copies packed [T d] to padded [b s d], which is contiguous, with zeros after each sequence."""
    sequence = tl.program_id(2)
    start = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - start
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < width)[None, :]
    source = packed + (start + row).to(tl.int64)[:, None] * packed_stride + column[None, :]
    target = padded + (sequence.to(tl.int64) * max_seqlen + row)[:, None] * width + column[None, :]
    # The load is masked at the sequence's end, the store at the padded length: padding becomes zero.
    value = tl.load(source, mask=(row < length)[:, None] & inside, other=0.0)
    tl.store(target, value, mask=(row < max_seqlen)[:, None] & inside)


@on_its_device
def pack(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """Runs `pack_rows`; arguments as in flava_kernels.packing."""
    packed = padded.new_empty(total, *padded.shape[2:])
    if packed.numel() > 0:
        batch, length, width = *padded.shape[:2], math.prod(padded.shape[2:])
        source, target = padded.reshape(batch, length, width), packed.view(total, width)
        columns = tile_columns(width)
        grid = (ceil_div(length, TILE_ROWS), ceil_div(width, columns), batch)
        source = source if source.stride(2) == 1 else source.contiguous()
        strides = (source.stride(0), source.stride(1), target.stride(0))
        pack_rows[grid](
            source, target, cu_seqlens, *strides, width, ROWS=TILE_ROWS, COLUMNS=columns, **OPTIONS
        )
    return packed


@on_its_device
def unpack(packed: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Runs `unpack_rows`; arguments as in flava_kernels.packing."""
    batch = cu_seqlens.shape[0] - 1
    padded = packed.new_empty(batch, max_seqlen, *packed.shape[1:])
    if padded.numel() > 0:
        width = math.prod(packed.shape[1:])
        source = packed.reshape(packed.shape[0], width)
        source = source if source.stride(1) == 1 else source.contiguous()
        columns = tile_columns(width)
        grid = (ceil_div(max_seqlen, TILE_ROWS), ceil_div(width, columns), batch)
        unpack_rows[grid](
            source, padded, cu_seqlens, source.stride(0), width, max_seqlen, ROWS=TILE_ROWS, COLUMNS=columns,
            **OPTIONS,
        )  # fmt: skip
    return padded


def launches() -> tuple[Launch, ...]:
    """Lists the configurations for rows of 768."""
    constexprs = {"ROWS": TILE_ROWS, "COLUMNS": tile_columns(768)}
    found = []
    for arch in ARCHITECTURES:
        for name in LISTED_TYPES:
            rows = f"*{name}"
            packing = {
                "padded": rows,
                "packed": rows,
                "cu_seqlens": "*i32",
                "sequence_stride": "i32",
                "padded_stride": "i32",
                "packed_stride": "i32",
            }
            unpacking = {
                "packed": rows,
                "padded": rows,
                "cu_seqlens": "*i32",
                "packed_stride": "i32",
                "width": "i32",
                "max_seqlen": "i32",
            }
            found.append(
                Launch(f"pack.{name}.768", pack_rows, packing | {"width": "i32"}, constexprs, 4, 1, arch)
            )
            found.append(Launch(f"unpack.{name}.768", unpack_rows, unpacking, constexprs, 4, 1, arch))
    return tuple(found)
