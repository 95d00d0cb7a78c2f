"""Self-attention over packed sequences.

    out_i = softmax(q_i K^T * scale) V,  keys and values of the query's own sequence only, and with `causal`
                                         those up to the query itself

    dV = P^T dO,   dP = dO V^T,   dS = P * (dP - rowsum(P * dP)) * scale,   dQ = dS K,   dK = dS^T Q
    d(qkv's bias) = colsum(dQ | dK | dV)

The last sum is that of the linear layer that made qkv (folded_bias.py). This is the only operator that knows
sequence boundaries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flava_kernels import autocast, checks, dispatch, folded_bias
from flava_kernels.attention_reference import (
    EagerAttention,
    backward_reference,
    forward_reference,
    keeps_probabilities,
)
from flava_kernels.cases import attention as cases
from flava_kernels.eager import once_differentiable, without_autocast
from flava_kernels.op import DTYPES, Limits, Op
from flava_kernels.packing import MOST_SEQUENCES, places

HEAD_SIZES = (32, 64, 128)
"""Head sizes of the kernels; the references take any."""

LIMITS = {
    torch.float32: Limits(1e-6, 2e-6),
    torch.float16: Limits(5e-4, 8e-4),
    torch.bfloat16: Limits(4e-3, 6e-3),
}


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    equal_lengths: bool = False,
    causal: bool = False,
    qkv_bias: Tensor | None = None,
) -> Tensor:
    """Attends within each packed sequence, with `causal` to no later token; never waits for the device.

    Shapes:
        qkv         [T 3 h e]
        cu_seqlens  [b+1]     int32
        max_seqlen            the longest sequence, or more
        qkv_bias    [3*h*e]   which qkv's layer has added detached: only its gradient is computed here
        returns     [T h e]   under autocast in its dtype

    `equal_lengths` promises that every sequence is max_seqlen long (images), which saves the reference a
    padded copy. Raises ValueError for a qkv or qkv_bias of another shape, and where the sequences can be read
    and do not fit (checks.py).
    """
    if qkv.dim() != 4 or qkv.shape[1] != 3:
        raise ValueError(f"varlen_attention: qkv has shape {list(qkv.shape)}, but [T 3 h e] is wanted")
    if qkv_bias is not None:
        checks.shape("varlen_attention", "qkv_bias", qkv_bias, (qkv.shape[1:].numel(),))
    (qkv,) = autocast.like_linear(qkv)
    if dispatch.needs_custom_operator(qkv):
        return _attention(qkv, cu_seqlens, max_seqlen, equal_lengths, causal, qkv_bias)[0]
    if dispatch.runs_on_the_cpu(qkv) and keeps_probabilities(qkv, max_seqlen):
        checks.sequences(
            "varlen_attention", cu_seqlens, qkv.shape[0], max_seqlen, equal_lengths=equal_lengths
        )
        wanted = qkv.requires_grad or (qkv_bias is not None and qkv_bias.requires_grad)
        gradients = torch.is_grad_enabled() and wanted
        return EagerAttention.apply(qkv, cu_seqlens, max_seqlen, equal_lengths, causal, qkv_bias, gradients)
    return _Attention.apply(qkv, cu_seqlens, max_seqlen, equal_lengths, causal, qkv_bias)


def supports(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    equal_lengths: bool = False,
    causal: bool = False,
    qkv_bias: Tensor | None = None,
) -> str | None:
    """Returns None, or why the kernels do not support this input."""
    (_, _, heads, head_size), strides = qkv.shape, qkv.stride()
    if qkv.dtype not in DTYPES:
        return f"qkv has {qkv.dtype}; one of {', '.join(map(str, DTYPES))} is wanted"
    if cu_seqlens.dtype != torch.int32:
        return f"cu_seqlens has {cu_seqlens.dtype}, int32 is wanted"
    if not cu_seqlens.is_contiguous():
        return "cu_seqlens is not contiguous"
    if head_size not in HEAD_SIZES:
        return f"the head size is {head_size}; one of {', '.join(map(str, HEAD_SIZES))} is wanted"
    if strides[3] != 1:
        return "the last axis of qkv is not contiguous"
    if heads > MOST_SEQUENCES or cu_seqlens.shape[0] - 1 > MOST_SEQUENCES:
        return (
            f"there are {cu_seqlens.shape[0] - 1} sequences and {heads} heads, at most {MOST_SEQUENCES} of "
            "each are taken"
        )
    if max_seqlen * max(strides[0], 3 * heads * head_size) >= 2**31:
        return f"a sequence of {max_seqlen} rows spans 2^31 elements or more"
    if max(2 * strides[1], (heads - 1) * strides[2]) >= 2**31:
        return f"a token's parts and heads span 2^31 elements or more: the strides of qkv are {strides}"
    return folded_bias.unfitting("qkv_bias", qkv_bias, qkv)


def definition(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    equal_lengths: bool = False,
    causal: bool = False,
    qkv_bias: Tensor | None = None,
) -> Tensor:
    """Attends in a padded layout with all scores stored, masking padding and, with `causal`, later keys."""
    batch, qkv = cu_seqlens.shape[0] - 1, folded_bias.definition(qkv, qkv_bias)
    sequence, position = places(cu_seqlens, qkv.shape[0])
    q, k, v = (
        qkv.new_zeros(batch, max_seqlen, *qkv.shape[1:])
        .index_put((sequence, position), qkv)
        .permute(2, 0, 3, 1, 4)
    )
    place = torch.arange(max_seqlen, device=qkv.device)
    masked = (place >= cu_seqlens.diff()[:, None])[:, None, None, :]
    if causal:
        masked = masked | (place > place[:, None])
    scores = q @ k.mT / math.sqrt(qkv.shape[3])
    scores = scores.masked_fill(masked, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ v)[sequence, :, position]


def pairs(length: int, causal: bool) -> int:
    """Counts the (query, key) pairs of one sequence whose score is needed."""
    return length * (length + 1) // 2 if causal else length**2


def _takes_triton(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, qkv_bias: Tensor | None = None) -> bool:
    supported = partial(supports, qkv_bias=qkv_bias)
    return dispatch.use_triton("varlen_attention", qkv, supported, qkv, cu_seqlens, max_seqlen)


@without_autocast
def attend(
    triton: bool, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool, causal: bool
) -> tuple[Tensor, Tensor]:
    """Returns out [T h e] and the log-sum-exp [h T], by the kernels or by the reference."""
    checks.sequences("varlen_attention", cu_seqlens, qkv.shape[0], max_seqlen, equal_lengths=equal_lengths)
    if qkv.numel() == 0:
        return _fake_attention(qkv)
    if triton:
        from flava_kernels.triton_ops import attention as kernels

        return kernels.forward(qkv, cu_seqlens, max_seqlen, causal)
    return forward_reference(qkv, cu_seqlens, max_seqlen, equal_lengths, causal)


@without_autocast
def attend_backward(
    triton: bool,
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    equal_lengths: bool,
    causal: bool,
    qkv_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns d_qkv and the gradient of its bias, which is empty without one."""
    if triton and qkv.numel():
        from flava_kernels.triton_ops import attention as kernels

        return kernels.backward(grad, qkv, out, lse, cu_seqlens, max_seqlen, causal, qkv_bias)
    d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    if qkv.numel():
        d_qkv = backward_reference(grad, qkv, cu_seqlens, max_seqlen, equal_lengths, causal)
    return d_qkv, qkv.new_empty(0) if qkv_bias is None else folded_bias.gradient(d_qkv, qkv_bias)


@torch.library.custom_op("flava_kernels::varlen_attention", mutates_args=())
def _attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    equal_lengths: bool,
    causal: bool,
    qkv_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    triton = _takes_triton(qkv, cu_seqlens, max_seqlen, qkv_bias)
    return attend(triton, qkv, cu_seqlens, max_seqlen, equal_lengths, causal)


@torch.library.custom_op("flava_kernels::varlen_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    equal_lengths: bool,
    causal: bool,
    qkv_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    triton = _takes_triton(qkv, cu_seqlens, max_seqlen, qkv_bias)
    return attend_backward(
        triton, grad, qkv, out, lse, cu_seqlens, max_seqlen, equal_lengths, causal, qkv_bias
    )


@_attention.register_fake
def _fake_attention(qkv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    tokens, _, heads, head_size = qkv.shape
    return qkv.new_empty(tokens, heads, head_size), qkv.new_empty(
        heads, tokens, dtype=torch.promote_types(qkv.dtype, torch.float32)
    )


@_attention_backward.register_fake
def _fake_attention_backward(_: Tensor, qkv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    qkv_bias = rest[-1]
    d_bias = qkv.new_empty(0) if qkv_bias is None else qkv_bias.new_empty(qkv_bias.shape)
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), d_bias


def _keep(ctx: Any, inputs: tuple, output: Any) -> None:
    qkv, cu_seqlens, *ctx.plain, qkv_bias = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)  # lse gets none, and zeros for it would be a kernel per layer
    ctx.save_for_backward(qkv, out, lse, cu_seqlens, qkv_bias)


def _differentiate(
    ctx: Any,
    grad: Tensor | None,
    _: None,
    backward: Callable[..., tuple[Tensor, Tensor]] = _attention_backward,
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of all arguments; only qkv and its bias can have one."""
    if grad is None:
        return (None,) * 6
    *saved, qkv_bias = ctx.saved_tensors
    needed = ctx.needs_input_grad[5]
    d_qkv, d_bias = backward(grad, *saved, *ctx.plain, qkv_bias if needed else None)
    return d_qkv, None, None, None, None, d_bias if needed else None


_attention.register_autograd(_differentiate, setup_context=_keep)


class _Attention(torch.autograd.Function):
    """The operator without torch.library."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        qkv, cu_seqlens, *ctx.plain, qkv_bias = inputs
        ctx.triton = _takes_triton(qkv, cu_seqlens, ctx.plain[0], qkv_bias)
        out, lse = attend(ctx.triton, qkv, cu_seqlens, *ctx.plain)
        ctx.save_for_backward(qkv, out, lse, cu_seqlens, qkv_bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _differentiate(ctx, grad, None, partial(attend_backward, ctx.triton))


OP = Op(
    "varlen_attention",
    varlen_attention,
    definition,
    supports,
    cases.cases,
    LIMITS,
    "flava_kernels.triton_ops.attention",
)
