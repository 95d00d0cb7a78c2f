"""Self-attention over packed sequences.

    out_i = softmax(q_i K^T * scale) V,  keys and values of the query's own sequence only

    dV = P^T dO,   dP = dO V^T,   dS = P * (dP - rowsum(P * dP)) * scale,   dQ = dS K,   dK = dS^T Q

This is the only operator that knows where one sequence ends and the next begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from flava_kernels import dispatch
from flava_kernels.cases import attention as cases
from flava_kernels.op import DTYPES, Limits, Op
from flava_kernels.packing import MOST_SEQUENCES, padded_rows, padded_slots, padded_validity, places, to_packed

HEAD_SIZES = (32, 64, 128)
"""Of the kernels; the references take any."""

CPU_SCORES_BYTES, GPU_SCORES_BYTES = 2**19, 2**28
"""Scores that the reference's backward pass holds at one time: on a CPU they should stay in a core's cache."""

LIMITS = {torch.float32: Limits(1e-6, 2e-6), torch.float16: Limits(5e-4, 8e-4), torch.bfloat16: Limits(4e-3, 6e-3)}


def varlen_attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, equal_lengths: bool = False) -> Tensor:
    """Attends within each packed sequence; never waits for the device.

    Shapes:
        qkv         [T 3 h e]
        cu_seqlens  [b+1]     int32
        max_seqlen            the longest sequence, or more
        returns     [T h e]

    `equal_lengths` promises that every sequence is max_seqlen long (images), so that the reference makes no padded copy.
    """
    out, _ = _attention(qkv, cu_seqlens, max_seqlen, equal_lengths)
    return out


def supports(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, equal_lengths: bool = False) -> str | None:
    """Returns None, or why the kernels do not take this input."""
    if qkv.dtype not in DTYPES:
        return f"qkv has {qkv.dtype}; one of {', '.join(map(str, DTYPES))} is wanted"
    if cu_seqlens.dtype != torch.int32:
        return f"cu_seqlens has {cu_seqlens.dtype}, int32 is wanted"
    if qkv.shape[3] not in HEAD_SIZES:
        return f"the head size is {qkv.shape[3]}; one of {', '.join(map(str, HEAD_SIZES))} is wanted"
    if qkv.stride(3) != 1:
        return "the last axis of qkv is not contiguous"
    if max(qkv.shape[2], cu_seqlens.shape[0] - 1) > MOST_SEQUENCES:
        return f"there are {cu_seqlens.shape[0] - 1} sequences and {qkv.shape[2]} heads, at most {MOST_SEQUENCES} of each are taken"
    if max_seqlen * max(qkv.stride(0), 3 * qkv.shape[2] * qkv.shape[3]) >= 2**31:
        return f"a sequence of {max_seqlen} rows spans 2^31 elements or more"
    if max(2 * qkv.stride(1), (qkv.shape[2] - 1) * qkv.stride(2)) >= 2**31:
        return f"a token's parts and heads span 2^31 elements or more: the strides of qkv are {qkv.stride()}"
    return None


def definition(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, equal_lengths: bool = False) -> Tensor:
    """Attends in a padded layout, as transformers does: every score is held, and padded keys are masked."""
    batch = cu_seqlens.shape[0] - 1
    sequence, position = places(cu_seqlens, qkv.shape[0])
    q, k, v = qkv.new_zeros(batch, max_seqlen, *qkv.shape[1:]).index_put((sequence, position), qkv).permute(2, 0, 3, 1, 4)
    padding = torch.arange(max_seqlen, device=qkv.device) >= cu_seqlens.diff()[:, None]
    scores = (q @ k.mT / math.sqrt(qkv.shape[3])).masked_fill(padding[:, None, None, :], torch.finfo(qkv.dtype).min)
    return (scores.softmax(-1) @ v)[sequence, :, position]


def forward_reference(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool) -> tuple[Tensor, Tensor]:
    """Attends in a padded layout, on a CPU with PyTorch's flash kernel.

    Shapes:
        out  [T h e]
        lse  [h T]    log2 of each query's sum of exponentials, in fp32 at least
    """
    attend = flash_attention_on_cpu if qkv.device.type == "cpu" else plain_attention
    if equal_lengths:
        out, lse = attend(qkv.unflatten(0, (-1, max_seqlen)), None)
        return out.flatten(0, 1).contiguous(), lse.transpose(0, 1).flatten(1) / math.log(2)
    rows = padded_rows(cu_seqlens, max_seqlen)
    out, lse = attend(qkv.index_select(0, rows.flatten()).unflatten(0, rows.shape), _attended_keys(cu_seqlens, max_seqlen))
    slots = padded_slots(cu_seqlens, max_seqlen, qkv.shape[0])
    return to_packed(out, slots), lse.transpose(0, 1).flatten(1).index_select(1, slots) / math.log(2)


def flash_attention_on_cpu(padded: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """What scaled_dot_product_attention runs on a CPU, with its log-sum-exp: [b s 3 h e], [b s] -> [b s h e], [b h s]."""
    q, k, v = padded.permute(2, 0, 3, 1, 4)
    mask = None if valid is None else q.new_zeros(valid.shape).masked_fill_(~valid, float("-inf"))[:, None, None, :]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)
    return out.transpose(1, 2), lse


def plain_attention(padded: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in separate steps, for any device."""
    q, k, v = padded.permute(2, 0, 3, 1, 4)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if valid is not None:
        scores.masked_fill_(~valid[:, None, None, :], float("-inf"))
    lse = scores.to(torch.promote_types(scores.dtype, torch.float32)).logsumexp(-1)
    return (scores.softmax(-1) @ v).transpose(1, 2), lse


def backward_reference(grad: Tensor, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool) -> Tensor:
    """Recomputes the softmax a few samples at a time: [T h e], [T 3 h e] -> [T 3 h e].

    PyTorch's own flash backward for CPUs takes 2 to 6 times as long at these lengths.
    """
    shape = (cu_seqlens.shape[0] - 1, max_seqlen, *qkv.shape[1:])
    d_qkv, scale = qkv.new_empty(shape), qkv.shape[3] ** -0.5
    keys = None if equal_lengths else _attended_keys(cu_seqlens, max_seqlen)
    for samples, chunk, d_out in _padded_chunks(grad, qkv, cu_seqlens, max_seqlen, equal_lengths):
        (q, k, v), d = (part.contiguous() for part in chunk.permute(2, 0, 3, 1, 4)), d_out.transpose(1, 2).contiguous()
        scores = (q * scale) @ k.mT
        if keys is not None:
            scores.masked_fill_(~keys[samples, None, None, :], float("-inf"))
        p = scores.softmax(-1)
        d_qkv[samples, :, 2].copy_((p.mT @ d).transpose(1, 2))
        d_scores = torch._softmax_backward_data(d @ v.mT, p, -1, p.dtype).mul_(scale)
        d_qkv[samples, :, 0].copy_((d_scores @ k).transpose(1, 2))
        d_qkv[samples, :, 1].copy_((d_scores.mT @ q).transpose(1, 2))
    return d_qkv.flatten(0, 1) if equal_lengths else to_packed(d_qkv, padded_slots(cu_seqlens, max_seqlen, qkv.shape[0]))


def _padded_chunks(grad: Tensor, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields a few sequences at a time: [c s 3 h e], and their upstream gradient [c s h e] with zeros behind each sequence."""
    batch = cu_seqlens.shape[0] - 1
    budget = CPU_SCORES_BYTES if qkv.device.type == "cpu" else GPU_SCORES_BYTES
    size = max(1, budget // (qkv.shape[2] * max_seqlen**2 * qkv.element_size()))
    if equal_lengths:
        for start in range(0, batch, size):
            samples = slice(start, start + size)
            yield samples, *(tensor.unflatten(0, (-1, max_seqlen))[samples] for tensor in (qkv, grad))
        return
    rows = padded_rows(cu_seqlens, max_seqlen)
    grad_rows = rows.masked_fill(~padded_validity(cu_seqlens, max_seqlen), qkv.shape[0])
    grad = torch.cat([grad, grad.new_zeros(1, *grad.shape[1:])])
    for start in range(0, batch, size):
        samples = slice(start, start + size)
        chosen = ((qkv, rows[samples]), (grad, grad_rows[samples]))
        yield samples, *(tensor.index_select(0, picked.flatten()).unflatten(0, picked.shape) for tensor, picked in chosen)


def _attended_keys(cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Which keys of the padded layout count: [b+1] -> [b s]. An empty sequence keeps one, so that its softmax is defined."""
    return torch.arange(max_seqlen, device=cu_seqlens.device) < cu_seqlens.diff().clamp(min=1)[:, None]


@torch.library.custom_op("flava_kernels::varlen_attention", mutates_args=())
def _attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool) -> tuple[Tensor, Tensor]:
    if qkv.numel() == 0:
        return _fake_attention(qkv, cu_seqlens, max_seqlen, equal_lengths)
    if dispatch.use_triton("varlen_attention", qkv, supports(qkv, cu_seqlens, max_seqlen)):
        from flava_kernels.triton_ops import attention as kernels

        return kernels.forward(qkv, cu_seqlens, max_seqlen)
    return forward_reference(qkv, cu_seqlens, max_seqlen, equal_lengths)


@torch.library.custom_op("flava_kernels::varlen_attention_backward", mutates_args=())
def _attention_backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool) -> Tensor:
    if qkv.numel() == 0:
        return _fake_attention_backward(grad, qkv, out, lse, cu_seqlens, max_seqlen, equal_lengths)
    if dispatch.use_triton("varlen_attention", qkv, supports(qkv, cu_seqlens, max_seqlen)):
        from flava_kernels.triton_ops import attention as kernels

        return kernels.backward(grad, qkv, out, lse, cu_seqlens, max_seqlen)
    return backward_reference(grad, qkv, cu_seqlens, max_seqlen, equal_lengths)


@_attention.register_fake
def _fake_attention(qkv, cu_seqlens, max_seqlen, equal_lengths):
    tokens, _, heads, head_size = qkv.shape
    return qkv.new_empty(tokens, heads, head_size), qkv.new_empty(heads, tokens, dtype=torch.promote_types(qkv.dtype, torch.float32))


@_attention_backward.register_fake
def _fake_attention_backward(grad, qkv, out, lse, cu_seqlens, max_seqlen, equal_lengths):
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _keep(ctx, inputs, output) -> None:
    qkv, cu_seqlens, ctx.max_seqlen, ctx.equal_lengths = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(qkv, out, lse, cu_seqlens)


def _differentiate(ctx, grad, _):
    return _attention_backward(grad, *ctx.saved_tensors, ctx.max_seqlen, ctx.equal_lengths), None, None, None


_attention.register_autograd(_differentiate, setup_context=_keep)


OP = Op("varlen_attention", varlen_attention, definition, supports, cases.cases, LIMITS, "flava_kernels.triton_ops.attention")
