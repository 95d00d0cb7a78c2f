"""Sigmoid loss of image-text pairs over the samples of all ranks, without an N x N matrix.

    z = exp(scale) I T^T + bias                   [b g], never stored: chunks of rows only
    loss = sum_ij m_j log(1 + exp(-y_ij z_ij)),   y_ij = 1 if j is i's own text, else -1

Every pair of image and text is a term of its own, so a rank needs its own rows alone. With s the logistic
function, G_ij = dloss/dz_ij = -m_j y_ij s(-y_ij z_ij) is at hand as soon as z is:

    dI = exp(scale) G T,  dT = exp(scale) G^T I,  d scale = sum G (z - bias),  d bias = sum G

All are computed in the forward pass, and the backward pass scales them: three products instead of the four of
recomputing z. Texts are gathered in the forward pass, and the gradients for them are added up in the backward
pass.

Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from flava_kernels import checks, dispatch
from flava_kernels.cases.sigmoid_loss import cases
from flava_kernels.contrastive import chunks, distributed, gather, unsupported
from flava_kernels.eager import once_differentiable, without_autocast
from flava_kernels.op import Limits, Op

NAME = "sigmoid_loss"


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    text_mask: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the sum over this rank's images and all texts, and how many images rank their own text first.

    The backward pass gives features the gradient of the sum over ALL ranks, provided that the incoming
    gradient is equal on all ranks, and scale and bias this rank's part of it. A text that is not its image's
    own takes no part: it is another sample's, so that it would push away the image that it belongs to. Among
    equal entries the first counts as the largest.

    Shapes:
        image      [b r]  L2-normalised; the same b on every rank
        text       [b r]  in the dtype of image
        log_scale  [1]
        bias       [1]
        text_mask  [b]    1 if the text belongs to its image, else 0
        returns    scalar (fp32, or fp64 for fp64 features) with gradient, scalar fp32 without

    Raises ValueError for shapes or dtypes that do not belong together on this rank.
    """
    if text.dtype != image.dtype:
        raise ValueError(f"{NAME}: text is {text.dtype} and image {image.dtype}; both must be the same")
    checks.shape(NAME, "text", text, image.shape)
    checks.shape(NAME, "text_mask", text_mask, image.shape[:1])
    return _SigmoidLoss.apply(image, text, log_scale, bias, text_mask, group)


def definition(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    text_mask: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the full matrix on one rank, from logits in fp32 at least."""
    similarities = log_scale.exp() * (image @ text.T)
    similarities = similarities.to(torch.promote_types(similarities.dtype, torch.float32))
    own = torch.arange(image.shape[0], device=image.device)
    labels = torch.eye(image.shape[0], dtype=similarities.dtype, device=image.device)
    losses = F.binary_cross_entropy_with_logits(similarities + bias, labels, reduction="none")
    shown = similarities.masked_fill(text_mask == 0, float("-inf"))
    return (losses * text_mask).sum(), (text_mask * (shown.argmax(1) == own)).sum().float()


def forward_reference(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    column_mask: Tensor,
    offset: int,
    gradients: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes loss and gradients for S = scale * rows columns^T + bias, in fp32 at least, chunk by chunk.

    `gradients` says whether those of rows and of columns are wanted; scale and bias have theirs with either.

    Shapes:
        rows         [b r]
        columns      [N r]
        scale        [1]    not its logarithm
        column_mask  [N]
        offset              the column that belongs to row 0
        loss         [1]
        correct      [1]    rows whose own column is in the mask, with the first of the largest entries in it
        d_rows       [b r]  [0 r] if not wanted
        d_columns    [N r]  [0 r] if not wanted
        d_scale      [1]    of the scale's logarithm
        d_bias       [1]
    """
    columns, scaled, mask = columns.to(scale.dtype), rows.to(scale.dtype) * scale, column_mask.to(scale.dtype)
    own = torch.arange(offset, offset + rows.shape[0], device=rows.device)
    left_out, own_mask = mask == 0, mask[offset : offset + rows.shape[0]]
    loss, correct, d_scale, d_bias = (torch.zeros_like(scale) for _ in range(4))
    d_rows = scaled.new_empty(rows.shape[0] if gradients[0] else 0, rows.shape[1])
    d_columns = scaled.new_zeros(columns.shape[0] if gradients[1] else 0, rows.shape[1])
    for chunk, logits in chunks(scaled, columns):
        # what is left out is never the largest, and neither its loss nor its gradient is more than 0
        torch.mm(scaled[chunk], columns.T, out=logits).masked_fill_(left_out, float("-inf"))
        # before the bias is added, which takes digits from them
        correct += ((logits.argmax(1) == own[chunk]) * own_mask[chunk]).sum()
        # -y z, which differs from z where image and text belong together
        sign = 1 - 2 * own_mask[chunk]
        logits.add_(bias).diagonal(offset + chunk.start).mul_(sign)
        loss += F.softplus(logits, threshold=40).sum()  # above it, log(1 + exp(x)) is x in fp64
        if not any(gradients):
            continue
        logits.sigmoid_().diagonal(offset + chunk.start).mul_(sign)
        d_bias += logits.sum()
        if gradients[0]:
            torch.mm(logits, columns, out=d_rows[chunk])
        if gradients[1]:
            d_columns.addmm_(logits.T, scaled[chunk])
    if any(gradients):
        d_scale = (d_rows * scaled if gradients[0] else d_columns * columns).sum().reshape(1)
    d_rows.mul_(scale)
    return loss, correct, d_rows, d_columns, d_scale, d_bias


def supports(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    text_mask: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
) -> str | None:
    """Returns None, or why the kernels do not support these arguments."""
    return unsupported(image, text)


@without_autocast
def _run(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    column_mask: Tensor,
    offset: int,
    gradients: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if dispatch.use_triton(NAME, rows, unsupported, rows, columns):
        from flava_kernels.triton_ops import sigmoid_loss as kernels

        return kernels.forward(rows, columns, scale, bias, column_mask, offset, gradients)
    return forward_reference(rows, columns, scale, bias, column_mask, offset, gradients)


_forward = torch.library.custom_op("flava_kernels::sigmoid_loss", _run, mutates_args=())


@_forward.register_fake
def _(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Any,
    column_mask: Any,
    offset: int,
    gradients: list[bool],
) -> tuple[Tensor, ...]:
    d_rows, d_columns = (
        side.new_empty(side.shape[0] if wanted else 0, side.shape[1], dtype=scale.dtype)
        for side, wanted in zip((rows, columns), gradients, strict=True)
    )
    loss, correct, d_scale, d_bias = (torch.empty_like(scale) for _ in range(4))
    return loss, correct, d_rows, d_columns, d_scale, d_bias


class _SigmoidLoss(torch.autograd.Function):
    """Runs the collectives around the operator."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        log_scale: Tensor,
        bias: Tensor,
        text_mask: Tensor,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        run = _forward if dispatch.needs_custom_operator(image) else _run
        work = torch.promote_types(image.dtype, torch.float32)
        offset = dist.get_rank(group) * image.shape[0] if distributed(group) else 0
        texts, mask = gather(text, group), gather(text_mask.to(work), group)
        scale = log_scale.to(work).exp()
        of_image, of_text, *shared = ctx.needs_input_grad[:4]
        gradients = [of_image or (any(shared) and not of_text), of_text]
        loss, correct, *kept = run(image, texts, scale, bias.to(work), mask, offset, gradients)
        ctx.save_for_backward(*kept)
        ctx.group, ctx.batch = group, image.shape[0]
        ctx.dtypes = image.dtype, text.dtype, log_scale.dtype, bias.dtype
        correct = correct.squeeze().float()
        ctx.mark_non_differentiable(correct)
        return loss.squeeze(), correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        d_image, d_text, d_scale, d_bias = ctx.saved_tensors
        if distributed(ctx.group) and ctx.needs_input_grad[1]:
            parts, d_text = d_text, torch.empty_like(d_text[: ctx.batch])
            dist.reduce_scatter_tensor(d_text, parts, group=ctx.group)
        found = d_image, d_text, d_scale, d_bias
        # rounded once, after the product
        wanted = zip(found, ctx.dtypes, ctx.needs_input_grad, strict=False)
        return *((part * grad).to(dtype) if needed else None for part, dtype, needed in wanted), None, None


OP = Op(
    name=NAME,
    function=sigmoid_loss,
    definition=definition,
    supports=supports,
    cases=cases,
    limits={
        torch.float32: Limits(4e-7, 2e-6, 3e-6),
        torch.float16: Limits(4e-7, 6e-4, 3e-6),
        torch.bfloat16: Limits(4e-7, 5e-3, 3e-6),
    },
    kernels="flava_kernels.triton_ops.sigmoid_loss",
)
