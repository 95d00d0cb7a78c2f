"""Image-text contrastive loss over the samples of all ranks, with full gradients and without an N x N matrix.

    S = exp(scale) I T^T                      [g g], never stored: chunks of rows only
    loss = sum_i m_i [ (lse_row_i + lse_col_i) / 2 - S_ii ],  m_i in {0, 1}

Each rank computes the log-sum-exps of its own rows (image to all texts) and of its own columns (text to all images). Every rank
then gathers both vectors and m: 3 numbers per sample. With them a rank finishes the gradient of its own features alone,

    dI_i = exp(scale) sum_j [ (m_i softmax_row_ij + m_j softmax_col_ij) / 2 - m_i [i = j] ] T_j,

so features are gathered forward, and nothing but these vectors travels for the backward pass.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def info_nce(
    image: Tensor, text: Tensor, log_scale: Tensor, row_mask: Tensor, *, chunk_rows: int = 1024, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Returns this rank's share of the summed loss, and how many of its rows rank their own text first.

    The backward pass gives the features and the scale the gradient of the sum over ALL ranks, provided that the incoming gradient
    is the same number on every rank. Samples with row_mask 0 are no positives, but stay negatives of the others.

    Shapes:
        image      [b r]  L2-normalised; the same b on every rank
        text       [b r]
        log_scale  [1]
        row_mask   [b]    1 where the pair counts as a positive
        returns    scalar fp32 with gradient, scalar fp32 without
    """
    return _InfoNCE.apply(image, text, log_scale, row_mask, chunk_rows, group)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, log_scale, row_mask, chunk_rows, group):
        work = torch.promote_types(image.dtype, torch.float32)
        image_all, text_all = _gather(image.to(work), group), _gather(text.to(work), group)
        rank = dist.get_rank(group) if _distributed(group) else 0
        local = slice(rank * image.shape[0], (rank + 1) * image.shape[0])
        scale, mask = log_scale.to(work).exp(), row_mask.to(work)
        row_lse, correct = _log_sum_exp(image_all[local], text_all, scale, local.start, mask, chunk_rows)
        column_lse, _ = _log_sum_exp(text_all[local], image_all, scale, local.start, mask, chunk_rows)
        diagonal = scale * (image_all[local] * text_all[local]).sum(-1)
        vectors = _gather(torch.stack([row_lse, column_lse, mask], dim=1), group)
        ctx.save_for_backward(image_all, text_all, scale, vectors)
        ctx.local, ctx.chunk_rows, ctx.dtypes = local, chunk_rows, (image.dtype, text.dtype, log_scale.dtype)
        ctx.mark_non_differentiable(correct)
        return (mask * ((row_lse + column_lse) / 2 - diagonal)).sum(), correct

    @staticmethod
    def backward(ctx, grad, _):
        image_all, text_all, scale, vectors = ctx.saved_tensors
        row_lse, column_lse, mask = vectors.unbind(1)
        d_image, d_scale = _feature_gradient(image_all, text_all, scale, row_lse, column_lse, mask, ctx.local, ctx.chunk_rows)
        d_text, _ = _feature_gradient(text_all, image_all, scale, column_lse, row_lse, mask, ctx.local, ctx.chunk_rows)
        image_dtype, text_dtype, scale_dtype = ctx.dtypes
        return (grad * d_image).to(image_dtype), (grad * d_text).to(text_dtype), (grad * d_scale).to(scale_dtype), None, None, None


def _log_sum_exp(rows: Tensor, columns: Tensor, scale: Tensor, offset: int, mask: Tensor, chunk_rows: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each row of scale * rows columns^T, and the number of masked rows whose largest entry is their own: [b], scalar."""
    lse, correct = rows.new_empty(rows.shape[0]), torch.zeros((), device=rows.device)
    for start in range(0, rows.shape[0], chunk_rows):
        chunk = slice(start, min(start + chunk_rows, rows.shape[0]))
        logits = scale * (rows[chunk] @ columns.T)
        lse[chunk] = logits.logsumexp(-1)
        own = torch.arange(offset + chunk.start, offset + chunk.stop, device=rows.device)
        correct = correct + ((logits.argmax(-1) == own) * mask[chunk]).sum()
    return lse, correct


def _feature_gradient(
    x_all: Tensor, y_all: Tensor, scale: Tensor, x_lse: Tensor, y_lse: Tensor, mask: Tensor, local: slice, chunk_rows: int
) -> tuple[Tensor, Tensor]:
    """Gradient of the global sum for the local rows of x, and this rank's part of the gradient of log_scale: [b r], [1]."""
    d_x, d_scale = x_all.new_empty(local.stop - local.start, x_all.shape[1]), torch.zeros_like(scale)
    for start in range(local.start, local.stop, chunk_rows):
        stop = min(start + chunk_rows, local.stop)
        logits = scale * (x_all[start:stop] @ y_all.T)
        d_logits = mask[start:stop, None] * (logits - x_lse[start:stop, None]).exp()
        d_logits.add_(mask * (logits - y_lse).exp()).mul_(0.5)
        d_logits.diagonal(start).sub_(mask[start:stop])
        d_x[start - local.start : stop - local.start] = scale * (d_logits @ y_all)
        d_scale = d_scale + (d_logits * logits).sum()
    return d_x, d_scale


def _distributed(group: dist.ProcessGroup | None) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _gather(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Concatenates equal-shaped tensors of all ranks along the first axis, without gradient."""
    if not _distributed(group):
        return local
    gathered = local.new_empty(dist.get_world_size(group) * local.shape[0], *local.shape[1:])
    dist.all_gather_into_tensor(gathered, local.contiguous(), group=group)
    return gathered
