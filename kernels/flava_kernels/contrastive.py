"""Image-text contrastive loss over the samples of all ranks, with full gradients and without an N x N matrix.

    S = exp(scale) I T^T                      [g g], never stored: chunks of rows only
    loss = sum_i m_i [ (lse_row_i + lse_col_i) / 2 - S_ii ],  m_i in {0, 1}

Each rank computes the log-sum-exps of its own rows (image to all texts) and of its own columns (text to all
images). Every rank then gathers both vectors and m: 3 numbers per sample. With them a rank finishes the
gradient of its own features alone,

    G_ij = m_i softmax_row_ij + m_j softmax_col_ij - 2 m_i [i = j]
    dI_i = exp(scale)/2 sum_j G_ij T_j,   d scale = 1/2 sum_ij G_ij S_ij,

so features are gathered in the forward pass, and only these vectors are exchanged for the backward pass. A
single rank owns all rows and columns: one pass over S gives both vectors, and one over G both gradients.

Source: Chen et al., DisCo-CLIP (arXiv 2304.08480), for gradients of a rank's own features; exchanging
log-sum-exps instead is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flava_kernels import checks, dispatch
from flava_kernels.cases.contrastive import cases
from flava_kernels.eager import once_differentiable, without_autocast
from flava_kernels.op import DTYPES, Limits, Op

CHUNK_BYTES = 2**23
"""Size of the chunk of S that the reference computes at a time.

Larger chunks leave a core's cache; smaller ones reread the other side's features too often.
"""


def info_nce(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    row_mask: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns this rank's share of the summed loss, and how many of its rows rank their own text first.

    The backward pass gives features the gradient of the sum over ALL ranks, provided that the incoming
    gradient is equal on all ranks, and the scale this rank's part of it. Samples with row_mask 0 are not
    positives but remain negatives of the others. Among equal entries the first counts as the largest.

    Shapes:
        image      [b r]  L2-normalised; the same b on every rank
        text       [b r]  in the dtype of image
        log_scale  [1]
        row_mask   [b]    1 if the pair is a positive, else 0
        returns    scalar (fp32, or fp64 for fp64 features) with gradient, scalar fp32 without

    Raises ValueError for shapes or dtypes that do not belong together on this rank.
    """
    if text.dtype != image.dtype:
        raise ValueError(f"info_nce: text is {text.dtype} and image {image.dtype}; both must be the same")
    checks.shape("info_nce", "text", text, image.shape)
    checks.shape("info_nce", "row_mask", row_mask, image.shape[:1])
    return _InfoNCE.apply(image, text, log_scale, row_mask, group)


def definition(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    row_mask: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the full matrix on one rank, with softmax in fp32 at least."""
    logits = log_scale.exp() * (image @ text.T)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = torch.arange(image.shape[0], device=image.device)
    loss = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()) / 2
    return (row_mask * loss).sum(), (row_mask * (logits.argmax(1) == own)).sum().float()


def forward_reference(
    rows: Tensor, columns: Tensor, scale: Tensor, offset: int, both: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes statistics of S = scale * rows columns^T, in fp32 at least, chunk by chunk.

    Shapes:
        rows        [b r]
        columns     [N r]
        scale       [1]    not its logarithm
        offset             the column that belongs to row 0
        row_lse     [b]    log-sum-exp of each row
        column_lse  [N]    of each column over these rows; [0] unless `both`
        own         [b]    S_{i, offset + i}
        first       [b]    1 if that is the first of the row's largest entries, else 0
    """
    columns, scaled = columns.to(scale.dtype), rows.to(scale.dtype) * scale
    own_column = torch.arange(offset, offset + rows.shape[0], device=rows.device)
    row_lse, own, first = (scaled.new_empty(rows.shape[0]) for _ in range(3))
    column_max = scaled.new_full((columns.shape[0] if both else 0,), float("-inf"))
    column_sum = torch.zeros_like(column_max)
    for chunk, logits in chunks(scaled, columns):
        torch.mm(scaled[chunk], columns.T, out=logits)
        largest, place = logits.max(1)
        own[chunk] = logits.gather(1, own_column[chunk, None])[:, 0]
        first[chunk] = (place == own_column[chunk]).to(first.dtype)
        if both:
            raised = torch.maximum(column_max, logits.amax(0))
            column_sum.mul_((column_max - raised).exp_()).add_((logits - raised).exp_().sum(0))
            column_max = raised
        row_lse[chunk] = logits.sub_(largest[:, None]).exp_().sum(1).log_().add_(largest)
    return row_lse, column_sum.log_().add_(column_max), own, first


def backward_reference(
    grad: Tensor,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_vectors: Tensor,
    column_vectors: Tensor,
    offset: int,
    both: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes gradients of grad * (the loss over all ranks), as far as these rows of G contribute.

    Shapes:
        grad            scalar
        row_vectors     [2 b]  log-sum-exps and mask of the rows
        column_vectors  [2 N]  of the columns, over the rows of all ranks
        d_rows          [b r]
        d_columns       [N r]  the part of these rows; [0 r] unless `both`
        d_log_scale     [1]    the part of these rows
    """
    work, mask = columns.to(scale.dtype), row_vectors[1]
    row_shift, column_shift = shifts(row_vectors), shifts(column_vectors)
    scaled = rows.to(scale.dtype) * scale
    d_rows, d_columns = (
        scaled.new_empty(scaled.shape),
        work.new_zeros(work.shape[0] if both else 0, work.shape[1]),
    )
    for chunk, logits in chunks(scaled, work):
        torch.mm(scaled[chunk], work.T, out=logits)
        gradient = (logits - column_shift).exp_().add_(logits.sub_(row_shift[chunk, None]).exp_())
        gradient.diagonal(offset + chunk.start).sub_(mask[chunk], alpha=2)
        torch.mm(gradient, work, out=d_rows[chunk])
        if both:
            d_columns.addmm_(gradient.T, scaled[chunk])
    half = grad / 2
    d_log_scale = (scaled * d_rows).sum().reshape(1) * half
    return d_rows.mul_(scale * half).to(rows.dtype), d_columns.mul_(half).to(columns.dtype), d_log_scale


def shifts(vectors: Tensor) -> Tensor:
    """Returns what to subtract from S so that exp gives m softmax: the log-sum-exp, or infinity if m = 0."""
    return vectors[0].masked_fill(vectors[1] == 0, float("inf"))


def chunks(rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of rows, and a buffer for their part of S, which is reused."""
    most = max(1, CHUNK_BYTES // (max(columns.shape[0], 1) * rows.element_size()))
    memory = rows.new_empty(min(most, rows.shape[0]), columns.shape[0])
    for start in range(0, rows.shape[0], most):
        stop = min(start + most, rows.shape[0])
        yield slice(start, stop), memory[: stop - start]


def supports(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    row_mask: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
) -> str | None:
    """Returns None, or why the kernels do not support these arguments."""
    return unsupported(image, text)


def unsupported(rows: Tensor, columns: Tensor) -> str | None:
    """Returns None, or why the kernels do not support these features."""
    if rows.dtype != columns.dtype:
        return f"the features are {rows.dtype} and {columns.dtype}"
    if rows.dtype not in DTYPES:
        return f"the features are {rows.dtype}"
    if rows.numel() == 0:
        return "there are no features"
    return None


@without_autocast
def _statistics(
    rows: Tensor, columns: Tensor, scale: Tensor, offset: int, both: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if dispatch.use_triton("info_nce", rows, unsupported, rows, columns):
        from flava_kernels.triton_ops import contrastive

        return contrastive.forward(rows, columns, scale, offset, both)
    return forward_reference(rows, columns, scale, offset, both)


@without_autocast
def _gradients(
    grad: Tensor,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_vectors: Tensor,
    column_vectors: Tensor,
    offset: int,
    both: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if dispatch.use_triton("info_nce", rows, unsupported, rows, columns):
        from flava_kernels.triton_ops import contrastive

        return contrastive.backward(grad, rows, columns, scale, row_vectors, column_vectors, offset, both)
    return backward_reference(grad, rows, columns, scale, row_vectors, column_vectors, offset, both)


_forward = torch.library.custom_op("flava_kernels::info_nce_forward", _statistics, mutates_args=())
_backward = torch.library.custom_op("flava_kernels::info_nce_backward", _gradients, mutates_args=())


@_forward.register_fake
def _(
    rows: Tensor, columns: Tensor, scale: Tensor, offset: int, both: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row = scale.new_empty(rows.shape[0])
    return row, scale.new_empty(columns.shape[0] if both else 0), torch.empty_like(row), torch.empty_like(row)


@_backward.register_fake
def _(_: Tensor, rows: Tensor, columns: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    both = rest[-1]
    return (
        rows.new_empty(rows.shape),
        columns.new_empty(columns.shape[0] if both else 0, columns.shape[1]),
        torch.empty_like(scale),
    )


class _InfoNCE(torch.autograd.Function):
    """Runs the collectives between the operators.

    They cannot be inside one: a rank's gradient is not the derivative of its own share of the loss.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        log_scale: Tensor,
        row_mask: Tensor,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        statistics = _forward if dispatch.needs_custom_operator(image) else _statistics
        work = torch.promote_types(image.dtype, torch.float32)
        scale, mask = log_scale.to(work).exp(), row_mask.to(work)
        alone = not distributed(group)
        image_all, text_all = gather(image, group), gather(text, group)
        offset = 0 if alone else dist.get_rank(group) * image.shape[0]
        row_lse, column_lse, own, first = statistics(image, text_all, scale, offset, alone)
        if not alone:
            column_lse = statistics(text, image_all, scale, offset, False)[0]
        row_vectors, column_vectors = torch.stack([row_lse, mask]), torch.stack([column_lse, mask])
        exchanged = gather(torch.stack([row_lse, column_lse, mask], dim=1), group)
        ctx.save_for_backward(image_all, text_all, scale, row_vectors, column_vectors, exchanged)
        ctx.offset, ctx.alone, ctx.scale_dtype = offset, alone, log_scale.dtype
        correct = (first * mask).sum().float()
        ctx.mark_non_differentiable(correct)
        return (mask * ((row_lse + column_lse) / 2 - own)).sum(), correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        image_all, text_all, scale, row_vectors, column_vectors, exchanged = ctx.saved_tensors
        gradients = _backward if dispatch.needs_custom_operator(image_all) else _gradients
        needs_image, needs_text, needs_scale = ctx.needs_input_grad[:3]
        row_lse, column_lse, mask = exchanged.unbind(1)
        local = slice(ctx.offset, ctx.offset + row_vectors.shape[1])
        d_image = d_text = d_log_scale = None
        if ctx.alone or needs_image or needs_scale:
            d_image, d_text, d_scale = gradients(
                grad,
                image_all[local],
                text_all,
                scale,
                row_vectors,
                torch.stack([column_lse, mask]),
                ctx.offset,
                ctx.alone and needs_text,
            )
            d_log_scale = d_scale.to(ctx.scale_dtype)
        if not ctx.alone and needs_text:
            all_rows = torch.stack([row_lse, mask])
            d_text, _, _ = gradients(
                grad, text_all[local], image_all, scale, column_vectors, all_rows, ctx.offset, False
            )
        return (
            d_image if needs_image else None,
            d_text if needs_text else None,
            d_log_scale if needs_scale else None,
            None,
            None,
        )


def distributed(group: dist.ProcessGroup | None) -> bool:
    """Returns whether there are other ranks in a group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def gather(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Concatenates equal-shaped tensors of all ranks along the first axis, without gradient."""
    if not distributed(group):
        return local
    gathered = local.new_empty(dist.get_world_size(group) * local.shape[0], *local.shape[1:])
    dist.all_gather_into_tensor(gathered, local.contiguous(), group=group)
    return gathered


OP = Op(
    name="info_nce",
    function=info_nce,
    definition=definition,
    supports=supports,
    cases=cases,
    limits={
        torch.float32: Limits(4e-7, 2e-6, 3e-6),
        torch.float16: Limits(4e-7, 6e-4, 3e-6),
        torch.bfloat16: Limits(4e-7, 5e-3, 3e-6),
    },
    kernels="flava_kernels.triton_ops.contrastive",
)
