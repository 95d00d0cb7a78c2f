"""Cross-attention over packed sequences: queries of one packed tensor, keys and values of another.

    out_i = softmax(q_i K^T * scale) V,  keys and values of the sequence with the query's own number; 0 where
                                         that has no keys

Gradients are those of attention.py. Queries and keys have bounds of their own, cu_seqlens_q and cu_seqlens_k.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flava_kernels import autocast, checks, dispatch
from flava_kernels.attention import HEAD_SIZES, LIMITS
from flava_kernels.attention_reference import cross_backward_reference, cross_forward_reference
from flava_kernels.cases import cross_attention as cases
from flava_kernels.eager import once_differentiable, without_autocast
from flava_kernels.op import DTYPES, Op
from flava_kernels.packing import MOST_SEQUENCES, places

NAME = "varlen_cross_attention"


def varlen_cross_attention(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    equal_keys: bool = False,
) -> Tensor:
    """Attends from each packed sequence of queries to its keys; never waits for the device.

    Shapes:
        q             [Tq h e]
        kv            [Tk 2 h e]
        cu_seqlens_q  [b+1]       int32; cu_seqlens_k alike
        max_seqlen_q              the most queries of a sequence, or more; max_seqlen_k alike
        returns       [Tq h e]    under autocast in its dtype

    A sequence without keys gives zeros and passes no gradient on. `equal_keys` promises that every sequence
    has max_seqlen_k keys (images), which saves the reference a padded copy. Raises ValueError for shapes that
    do not belong together, and for sequences that do not fit where these can be read (checks.py).
    """
    if q.shape[1:] != kv.shape[2:] or kv.shape[1] != 2 or cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"{NAME}: q {tuple(q.shape)} and kv {tuple(kv.shape)} with cu_seqlens "
            f"{tuple(cu_seqlens_q.shape)} and {tuple(cu_seqlens_k.shape)} do not belong together; [Tq h e], "
            "[Tk 2 h e], [b+1] and [b+1] are wanted"
        )
    q, kv = autocast.like_linear(q, kv)
    if dispatch.needs_custom_operator(q):
        return _attention(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, equal_keys)[0]
    return _Attention.apply(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, equal_keys)


def supports(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    equal_keys: bool = False,
) -> str | None:
    """Returns None, or why the kernels do not support this input."""
    if q.dtype not in DTYPES or kv.dtype != q.dtype:
        return f"q has {q.dtype}, kv {kv.dtype}; one of {', '.join(map(str, DTYPES))} is wanted for both"
    if {cu_seqlens_q.dtype, cu_seqlens_k.dtype} != {torch.int32}:
        return f"cu_seqlens have {cu_seqlens_q.dtype} and {cu_seqlens_k.dtype}, int32 is wanted"
    if not (cu_seqlens_q.is_contiguous() and cu_seqlens_k.is_contiguous()):
        return "a cu_seqlens is not contiguous"
    heads, head_size = q.shape[1:]
    if head_size not in HEAD_SIZES:
        return f"the head size is {head_size}; one of {', '.join(map(str, HEAD_SIZES))} is wanted"
    if q.stride(2) != 1 or kv.stride(3) != 1:
        return "the last axis of q or of kv is not contiguous"
    sequences = cu_seqlens_q.shape[0] - 1
    if max(heads, sequences) > MOST_SEQUENCES:
        return (
            f"there are {sequences} sequences and {heads} heads, at most {MOST_SEQUENCES} of each are taken"
        )
    width = heads * head_size
    spans = max_seqlen_q * max(q.stride(0), width), max_seqlen_k * max(kv.stride(0), 2 * width)
    if max(spans) >= 2**31:
        return f"a sequence of {max_seqlen_q} queries and {max_seqlen_k} keys spans 2^31 elements or more"
    if max((heads - 1) * q.stride(1), kv.stride(1) + (heads - 1) * kv.stride(2)) >= 2**31:
        return (
            f"a token's parts and heads span 2^31 elements or more: the strides of q are {q.stride()}, those "
            f"of kv {kv.stride()}"
        )
    return None


def definition(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    equal_keys: bool = False,
) -> Tensor:
    """Attends in a padded layout with all scores stored, masking padding and sequences without keys."""
    sequence, position = places(cu_seqlens_q, q.shape[0])
    batch = cu_seqlens_q.shape[0] - 1
    queries = q.new_zeros(batch, max_seqlen_q, *q.shape[1:]).index_put((sequence, position), q)
    keys_values = kv.new_zeros(batch, max_seqlen_k, *kv.shape[1:]).index_put(
        places(cu_seqlens_k, kv.shape[0]), kv
    )
    k, v = keys_values.permute(2, 0, 3, 1, 4)
    real = (torch.arange(max_seqlen_k, device=q.device) < cu_seqlens_k.diff()[:, None])[:, None, None, :]
    scores = queries.transpose(1, 2) @ k.mT / math.sqrt(q.shape[2])
    scores = scores.masked_fill(~real, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) * real @ v)[sequence, :, position]


@without_autocast
def _attend(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    equal_keys: bool,
) -> tuple[Tensor, Tensor]:
    layout = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    checks.sequences(f"{NAME}, queries", cu_seqlens_q, q.shape[0], max_seqlen_q)
    checks.sequences(f"{NAME}, keys", cu_seqlens_k, kv.shape[0], max_seqlen_k, equal_lengths=equal_keys)
    if q.numel() == 0 or kv.numel() == 0:
        out, lse = _fake_attention(q)
        return out.zero_(), lse.fill_(float("-inf"))
    if dispatch.use_triton(NAME, q, supports, q, kv, *layout):
        from flava_kernels.triton_ops import cross_attention as kernels

        return kernels.forward(q, kv, *layout)
    return cross_forward_reference(q, kv, *layout, equal_keys)


@without_autocast
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    kv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    equal_keys: bool,
) -> tuple[Tensor, Tensor]:
    layout = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    if q.numel() == 0 or kv.numel() == 0:
        d_q, d_kv = _fake_attention_backward(grad, q, kv)
        return d_q.zero_(), d_kv.zero_()
    if dispatch.use_triton(NAME, q, supports, q, kv, *layout):
        from flava_kernels.triton_ops import cross_attention as kernels

        return kernels.backward(grad, q, kv, out, lse, *layout)
    return cross_backward_reference(grad, q, kv, *layout, equal_keys)


_attention = torch.library.custom_op(f"flava_kernels::{NAME}", _attend, mutates_args=())
_attention_backward = torch.library.custom_op(
    f"flava_kernels::{NAME}_backward", _attend_backward, mutates_args=()
)


@_attention.register_fake
def _fake_attention(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    tokens, heads, head_size = q.shape
    return q.new_empty(tokens, heads, head_size), q.new_empty(
        heads, tokens, dtype=torch.promote_types(q.dtype, torch.float32)
    )


@_attention_backward.register_fake
def _fake_attention_backward(_: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    d_q, d_kv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:2])
    return d_q, d_kv


def _keep(ctx: Any, inputs: tuple, output: Any) -> None:
    q, kv, cu_seqlens_q, cu_seqlens_k, *ctx.plain = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)  # lse gets none, and zeros for it would be a kernel per layer
    ctx.save_for_backward(q, kv, out, lse, cu_seqlens_q, cu_seqlens_k)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    return *_attention_backward(grad, *ctx.saved_tensors, *ctx.plain), *[None] * 5


_attention.register_autograd(_differentiate, setup_context=_keep)


class _Attention(torch.autograd.Function):
    """The operator without torch.library."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q, kv, cu_seqlens_q, cu_seqlens_k, *ctx.plain = inputs
        out, lse = _attend(*inputs)
        ctx.save_for_backward(q, kv, out, lse, cu_seqlens_q, cu_seqlens_k)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_attend_backward(grad, *ctx.saved_tensors, *ctx.plain), *[None] * 5


OP = Op(
    NAME,
    varlen_cross_attention,
    definition,
    supports,
    cases.cases,
    LIMITS,
    "flava_kernels.triton_ops.cross_attention",
)
