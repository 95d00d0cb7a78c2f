"""Concatenates packed sequences of several origins, sample by sample.

    fused_i = [cls | image_i | text_i]

The backward pass splits the rows again and sums those of the shared cls token in fp32, in sample order. Each
row is moved once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flava_kernels import autocast, checks, dispatch
from flava_kernels.cases import fusing as cases
from flava_kernels.eager import once_differentiable
from flava_kernels.op import Limits, Op
from flava_kernels.packing import places, sequence_of_rows, unsupported

NAME = "fuse_sequences"
LIMITS = {
    torch.float32: Limits(0.0, 1e-6),
    torch.float16: Limits(0.0, 5e-4),
    torch.bfloat16: Limits(0.0, 3.5e-3),
}
"""Only the cls token's gradient is computed; it is rounded once."""


def fuse_sequences(
    cls_token: Tensor, image: Tensor, text: Tensor, text_cu_seqlens: Tensor, text_max_seqlen: int
) -> Tensor:
    """Builds the packed multimodal sequences.

    Shapes:
        cls_token        [d]
        image            [b*s d]      the same s for every sample
        text             [T d]        packed
        text_cu_seqlens  [b+1]        int32
        text_max_seqlen               length of the longest text, or more
        returns          [b+b*s+T d]  per sample: the CLS, its s image rows, its text rows

    Under autocast all three become the widest dtype among them, as for torch.cat. Raises ValueError for
    shapes that do not belong together.
    """
    checks.shape(NAME, "cls_token", cls_token, image.shape[1:])
    checks.shape(NAME, "text", text, (text.shape[0], *image.shape[1:]))
    if image.shape[0] % max(text_cu_seqlens.shape[0] - 1, 1):
        raise ValueError(
            f"{NAME}: image has {image.shape[0]} rows, which are not as many for each of "
            f"{text_cu_seqlens.shape[0] - 1} samples"
        )
    cls_token, image, text = autocast.like_cat(cls_token, image, text)
    function = _fuse if dispatch.needs_custom_operator(image) else _Fuse.apply
    return function(cls_token, image, text, text_cu_seqlens, text_max_seqlen)


def supports(
    cls_token: Tensor, image: Tensor, text: Tensor, text_cu_seqlens: Tensor, text_max_seqlen: int
) -> str | None:
    """Returns None, or why the kernels of `fuse_sequences` do not support this input."""
    return unsupported(text_cu_seqlens, cls_token, image, text)


def definition(
    cls_token: Tensor, image: Tensor, text: Tensor, text_cu_seqlens: Tensor, text_max_seqlen: int
) -> Tensor:
    """Concatenates everything and sorts the rows by (sample, origin)."""
    batch = text_cu_seqlens.shape[0] - 1
    samples = torch.arange(batch, device=image.device)
    of_image = samples.repeat_interleave(image.shape[0] // max(batch, 1), output_size=image.shape[0])
    of_text, _ = places(text_cu_seqlens, text.shape[0])
    order = torch.cat([3 * samples, 3 * of_image + 1, 3 * of_text + 2]).argsort(stable=True)
    return torch.cat([cls_token.expand(batch, -1), image, text])[order]


def fused_rows(cu_seqlens: Tensor, image_length: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the fused rows of every cls token, image row and text row: [b], [b*s], [T], int64."""
    prefix = 1 + image_length
    cu = cu_seqlens.long()
    start = cu[:-1] + prefix * torch.arange(cu.shape[0] - 1, device=cu.device)
    image_rows = (start[:, None] + torch.arange(1, prefix, device=cu.device)).flatten()
    text_rows = torch.arange(total, device=cu.device) + prefix * (sequence_of_rows(cu_seqlens, total) + 1)
    return start, image_rows, text_rows


def forward_reference(cls_token: Tensor, image: Tensor, text: Tensor, text_cu_seqlens: Tensor) -> Tensor:
    """Concatenates everything once and gathers it into order."""
    batch = text_cu_seqlens.shape[0] - 1
    rows = torch.cat(fused_rows(text_cu_seqlens, image.shape[0] // max(batch, 1), text.shape[0]))
    order = torch.empty_like(rows).scatter_(0, rows, torch.arange(rows.shape[0], device=rows.device))
    return torch.cat([cls_token.expand(batch, -1), image, text]).index_select(0, order)


def backward_reference(
    grad: Tensor, text_cu_seqlens: Tensor, image_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits the rows: [b+b*s+T d] -> [d], [b*s d], [T d]."""
    batch = text_cu_seqlens.shape[0] - 1
    start, image_rows, text_rows = fused_rows(
        text_cu_seqlens, image_length, grad.shape[0] - batch * (1 + image_length)
    )
    d_cls = grad.index_select(0, start).sum(0, dtype=torch.promote_types(grad.dtype, torch.float32))
    return d_cls.to(grad.dtype), grad.index_select(0, image_rows), grad.index_select(0, text_rows)


def _concatenate(
    cls_token: Tensor, image: Tensor, text: Tensor, text_cu_seqlens: Tensor, text_max_seqlen: int
) -> Tensor:
    checks.sequences(NAME, text_cu_seqlens, text.shape[0], text_max_seqlen)
    if dispatch.use_triton(NAME, image, supports, cls_token, image, text, text_cu_seqlens, text_max_seqlen):
        from flava_kernels.triton_ops import fusing as kernels

        return kernels.forward(cls_token, image, text, text_cu_seqlens, text_max_seqlen)
    return forward_reference(cls_token, image, text, text_cu_seqlens)


def _split(
    grad: Tensor, text_cu_seqlens: Tensor, text_max_seqlen: int, image_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    if dispatch.use_triton(NAME, grad, unsupported, text_cu_seqlens, grad):
        from flava_kernels.triton_ops import fusing as kernels

        return kernels.backward(grad, text_cu_seqlens, text_max_seqlen, image_length)
    return backward_reference(grad, text_cu_seqlens, image_length)


_fuse = torch.library.custom_op("flava_kernels::fuse_sequences", _concatenate, mutates_args=())
_fuse_backward = torch.library.custom_op("flava_kernels::fuse_sequences_backward", _split, mutates_args=())


@_fuse.register_fake
def _(
    cls_token: Tensor, image: Tensor, text: Tensor, text_cu_seqlens: Tensor, text_max_seqlen: int
) -> Tensor:
    return image.new_empty(text_cu_seqlens.shape[0] - 1 + image.shape[0] + text.shape[0], image.shape[1])


@_fuse_backward.register_fake
def _(
    grad: Tensor, text_cu_seqlens: Tensor, text_max_seqlen: int, image_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, width = text_cu_seqlens.shape[0] - 1, grad.shape[1]
    images = batch * image_length
    return (
        grad.new_empty(width),
        grad.new_empty(images, width),
        grad.new_empty(grad.shape[0] - batch - images, width),
    )


def _keep_for_fuse(ctx: Any, inputs: tuple, output: Any) -> None:
    _, image, _, text_cu_seqlens, text_max_seqlen = inputs
    ctx.lengths = text_max_seqlen, image.shape[0] // max(text_cu_seqlens.shape[0] - 1, 1)
    ctx.save_for_backward(text_cu_seqlens)


def _differentiate_fuse(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_fuse_backward(grad, *ctx.saved_tensors, *ctx.lengths), None, None


_fuse.register_autograd(_differentiate_fuse, setup_context=_keep_for_fuse)


class _Fuse(torch.autograd.Function):
    """The operator without torch.library."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _keep_for_fuse(ctx, inputs, None)
        return _concatenate(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_split(grad, *ctx.saved_tensors, *ctx.lengths), None, None


OP = Op(
    NAME,
    fuse_sequences,
    definition,
    supports,
    cases.cases,
    LIMITS,
    "flava_kernels.triton_ops.fusing",
)
