"""Kernels of `fuse_sequences`: a program moves a tile of one sample's fused rows; another sums cls gradients.

A row comes from one of three tensors, so a tile issues three loads, two of them fully masked except where the
origins meet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flava_kernels.triton_ops.launch import ARCHITECTURES, Launch, ceil_div, on_its_device
from flava_kernels.triton_ops.packing import LISTED_TYPES, OPTIONS, TILE_ROWS, tile_columns

SUM_ROWS, SUM_COLUMNS = 64, 32
"""Tile of the cls sum: narrow, for more programs; they share nothing."""


@triton.jit
def fuse_rows(
    cls_token,
    image,
    text,
    fused,
    cu_seqlens,
    image_stride,
    text_stride,
    fused_stride,
    image_length,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Copies cls_token [d], image [b*s d] and text [T d] to fused [b+b*s+T d]; strides count elements."""
    # Axis 2 is the sample, axis 0 the tiles of the longest sequence; rows past a shorter one are masked.
    sample = tl.program_id(2)
    start = tl.load(cu_seqlens + sample)
    length = tl.load(cu_seqlens + sample + 1) - start + 1 + image_length
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < width)[None, :]
    of_text = ((row > image_length) & (row < length))[:, None]
    of_image = ((row >= 1) & (row <= image_length))[:, None]
    image_row = sample.to(tl.int64) * image_length + row - 1
    text_row = start.to(tl.int64) + row - 1 - image_length
    fused_row = start.to(tl.int64) + sample.to(tl.int64) * (1 + image_length) + row
    from_image = tl.load(
        image + image_row[:, None] * image_stride + column[None, :], mask=of_image & inside, other=0.0
    )
    from_text = tl.load(
        text + text_row[:, None] * text_stride + column[None, :], mask=of_text & inside, other=0.0
    )
    # Every tile loads the cls token, which only row 0 uses: [d] elements that stay in the cache.
    from_cls = tl.load(cls_token + column, mask=column < width, other=0.0)
    value = tl.where(of_text, from_text, tl.where(of_image, from_image, from_cls[None, :]))
    tl.store(
        fused + fused_row[:, None] * fused_stride + column[None, :],
        value,
        mask=(row < length)[:, None] & inside,
    )


@triton.jit
def part_rows(
    grad,
    d_image,
    d_text,
    cu_seqlens,
    grad_stride,
    d_image_stride,
    d_text_stride,
    image_length,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Copies grad [b+b*s+T d], except the cls rows, to d_image [b*s d] and d_text [T d]."""
    sample = tl.program_id(2)
    start = tl.load(cu_seqlens + sample)
    length = tl.load(cu_seqlens + sample + 1) - start + 1 + image_length
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < width)[None, :]
    of_text = ((row > image_length) & (row < length))[:, None]
    of_image = ((row >= 1) & (row <= image_length))[:, None]
    image_row = sample.to(tl.int64) * image_length + row - 1
    text_row = start.to(tl.int64) + row - 1 - image_length
    fused_row = start.to(tl.int64) + sample.to(tl.int64) * (1 + image_length) + row
    value = tl.load(
        grad + fused_row[:, None] * grad_stride + column[None, :],
        mask=(of_image | of_text) & inside,
        other=0.0,
    )
    tl.store(d_image + image_row[:, None] * d_image_stride + column[None, :], value, mask=of_image & inside)
    tl.store(d_text + text_row[:, None] * d_text_stride + column[None, :], value, mask=of_text & inside)


@triton.jit(do_not_specialize=["batch"])
def sum_cls_rows(
    grad,
    d_cls,
    cu_seqlens,
    grad_stride,
    image_length,
    width,
    batch,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums every sample's first fused row in fp32, in sample order: grad [b+b*s+T d] -> d_cls [d].

    A program owns a block of columns and loops over all samples, so the sum needs no atomics.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, batch, ROWS):
        sample = first + tl.arange(0, ROWS)
        row = tl.load(cu_seqlens + sample, mask=sample < batch, other=0).to(tl.int64) + sample.to(
            tl.int64
        ) * (1 + image_length)
        mask = (sample < batch)[:, None] & (column < width)[None, :]
        total += tl.sum(
            tl.load(grad + row[:, None] * grad_stride + column[None, :], mask=mask, other=0.0).to(tl.float32),
            0,
        )
    tl.store(d_cls + column, total.to(d_cls.dtype.element_ty), mask=column < width)


@on_its_device
def forward(
    cls_token: Tensor, image: Tensor, text: Tensor, text_cu_seqlens: Tensor, text_max_seqlen: int
) -> Tensor:
    """Runs `fuse_rows`; arguments as in flava_kernels.fusing."""
    batch, width = text_cu_seqlens.shape[0] - 1, image.shape[1]
    fused = image.new_empty(batch + image.shape[0] + text.shape[0], width)
    if fused.numel() > 0:
        image_length = image.shape[0] // batch
        cls_token, image, text = (
            tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (cls_token, image, text)
        )
        strides = (image.stride(0), text.stride(0), fused.stride(0))
        grid, tile = _grid_and_tile(1 + image_length + text_max_seqlen, width, batch)
        fuse_rows[grid](
            cls_token, image, text, fused, text_cu_seqlens, *strides, image_length, width, **tile, **OPTIONS
        )
    return fused


@on_its_device
def backward(
    grad: Tensor, text_cu_seqlens: Tensor, text_max_seqlen: int, image_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `part_rows` and `sum_cls_rows`; arguments as in flava_kernels.fusing."""
    batch, width = text_cu_seqlens.shape[0] - 1, grad.shape[1]
    images = batch * image_length
    d_cls, d_image, d_text = (
        grad.new_empty(width),
        grad.new_empty(images, width),
        grad.new_empty(grad.shape[0] - batch - images, width),
    )
    grad = grad if grad.stride(1) == 1 else grad.contiguous()
    if grad.numel() > 0:
        strides = (grad.stride(0), d_image.stride(0), d_text.stride(0))
        grid, tile = _grid_and_tile(1 + image_length + text_max_seqlen, width, batch)
        part_rows[grid](
            grad, d_image, d_text, text_cu_seqlens, *strides, image_length, width, **tile, **OPTIONS
        )
    sizes = {"ROWS": SUM_ROWS, "COLUMNS": SUM_COLUMNS}
    sum_cls_rows[(ceil_div(width, SUM_COLUMNS),)](
        grad, d_cls, text_cu_seqlens, grad.stride(0), image_length, width, batch, **sizes, **OPTIONS
    )
    return d_cls, d_image, d_text


def _grid_and_tile(longest: int, width: int, batch: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    columns = tile_columns(width)
    return (ceil_div(longest, TILE_ROWS), ceil_div(width, columns), batch), {
        "ROWS": TILE_ROWS,
        "COLUMNS": columns,
    }


def launches() -> tuple[Launch, ...]:
    """Lists the configurations for rows of 768."""
    tile, sum_tile = (
        {"ROWS": TILE_ROWS, "COLUMNS": tile_columns(768)},
        {"ROWS": SUM_ROWS, "COLUMNS": SUM_COLUMNS},
    )
    found = []
    for arch in ARCHITECTURES:
        for name in LISTED_TYPES:
            rows, sizes = f"*{name}", {"image_length": "i32", "width": "i32"}
            fusing = {"cls_token": rows, "image": rows, "text": rows, "fused": rows, "cu_seqlens": "*i32"}
            fusing |= {"image_stride": "i32", "text_stride": "i32", "fused_stride": "i32"} | sizes
            parting = {"grad": rows, "d_image": rows, "d_text": rows, "cu_seqlens": "*i32"}
            parting |= {"grad_stride": "i32", "d_image_stride": "i32", "d_text_stride": "i32"} | sizes
            summing = (
                {"grad": rows, "d_cls": rows, "cu_seqlens": "*i32", "grad_stride": "i32"}
                | sizes
                | {"batch": "i32"}
            )
            loose = ("image_length",)
            found.append(
                Launch(f"fuse_sequences.forward.{name}.768", fuse_rows, fusing, tile, 4, 1, arch, loose)
            )
            found.append(
                Launch(f"fuse_sequences.backward.{name}.768", part_rows, parting, tile, 4, 1, arch, loose)
            )
            found.append(
                Launch(
                    f"fuse_sequences.backward_cls.{name}.768",
                    sum_cls_rows,
                    summing,
                    sum_tile,
                    4,
                    1,
                    arch,
                    loose,
                )
            )
    return tuple(found)
