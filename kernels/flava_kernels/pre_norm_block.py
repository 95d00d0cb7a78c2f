"""A pre-norm block of a transformer as one node of autograd, for hosts that have no time for a dozen.

    s1 = stream + branch,  x = LayerNorm(s1),  qkv = x Wq^T + bq,  c = attention(qkv),  a = c Wo^T + bo
    s2 = s1 + a,           y = LayerNorm(s2),  z = y Wu^T + bu,    g = GELU(z),         branch' = g Wd^T + bd

Launches and products are those of a block made of layers, in the same order, so results and gradients are the
same bit for bit. What it saves is Python: calls of modules, choices of implementations, nodes of autograd. It
keeps the same tensors. Biases fold (folded_bias.py): the gradient of bd is left to whoever adds branch'.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_kernels import attention, checks, dispatch, layer_norm, linear_gelu
from flava_kernels.eager import once_differentiable


class BlockWeights(NamedTuple):
    """The parameters of a block.

    Shapes:
        attention_norm, mlp_norm  [d]      with their biases [d]
        qkv                       [3*d d]  [3*d]
        output                    [d d]    [d]
        up                        [f d]    [f]
        down                      [d f]    [d]
    """

    attention_norm: Tensor
    attention_norm_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    output: Tensor
    output_bias: Tensor
    mlp_norm: Tensor
    mlp_norm_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor


class BlockOptions(NamedTuple):
    """What a block needs beside tensors; the first three are those of `varlen_attention`."""

    max_seqlen: int
    equal_lengths: bool
    causal: bool
    num_heads: int
    eps: float
    recompute_gelu: bool
    """Keep GELU's input alone, and compute its result again."""


def takes(
    stream: Tensor, branch: Tensor | None, cu_seqlens: Tensor, options: BlockOptions, weights: BlockWeights
) -> bool:
    """Returns True if `pre_norm_block` may stand for the layers: their operators would all run kernels, all
    gradients are wanted, and no compiler, dispatch mode or autocast changes what they do.
    """
    if not torch.is_grad_enabled() or dispatch.needs_custom_operator(stream):
        return False
    if torch._C._is_any_autocast_enabled() or dispatch.implementation(stream.device.type, None) != "triton":
        return False
    dtype = stream.dtype
    for weight in weights:
        if weight.dtype is not dtype or not weight.requires_grad or not weight.is_contiguous():
            return False
    rows = (stream,) if branch is None else (stream, branch)
    if cu_seqlens.dtype is not torch.int32 or not cu_seqlens.is_contiguous() or not stream.numel():
        return False
    return all(each.dtype is dtype and each.stride(-1) == 1 for each in rows) and _supported(
        dtype, weights.up.shape, options.num_heads, options.max_seqlen, cu_seqlens.shape[0]
    )


@functools.lru_cache(1024)
def _supported(dtype: torch.dtype, up: tuple[int, int], num_heads: int, max_seqlen: int, bounds: int) -> bool:
    """Asks the operators about tensors of these sizes."""
    rows, wide = (torch.empty(1, width, dtype=dtype, device="meta") for width in reversed(up))
    qkv = rows.expand(3, -1).reshape(1, 3, num_heads, -1)
    reasons = (
        layer_norm.add_layer_norm_supports(rows, rows, rows[0], rows[0], 0.0),
        attention.supports(qkv, torch.empty(bounds, dtype=torch.int32, device="meta"), max_seqlen),
        linear_gelu.supports(rows, wide, wide),
    )
    return not any(reasons)


def pre_norm_block(
    stream: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    cu_seqlens: Tensor,
    rows: Tensor | None,
    options: BlockOptions,
    weights: BlockWeights,
) -> tuple[Tensor, Tensor]:
    """Computes a block that `takes` has taken.

    Shapes:
        stream       [T d]
        branch       [T d]  still to be added to the stream; None for none
        branch_bias  [d]    which branch's layer has added detached: only its gradient is computed here
        cu_seqlens   [b+1]  int32
        rows         [k]    everything after attention is computed for these only; None for all
        returns      the stream and the branch to be added: [T d], or [k d]
    """
    return _PreNormBlock.apply(stream, branch, branch_bias, cu_seqlens, rows, options, *weights)


class _Kept(NamedTuple):
    """What the backward pass reads beside the parameters; one-letter names are those of the equations."""

    branch_bias: Tensor | None
    cu_seqlens: Tensor
    rows: Tensor | None
    s1: Tensor
    mean_1: Tensor
    rstd_1: Tensor
    x: Tensor
    qkv: Tensor
    context: Tensor
    lse: Tensor
    c: Tensor | None
    s2: Tensor
    mean_2: Tensor
    rstd_2: Tensor
    y: Tensor
    z: Tensor
    g: Tensor | None


class _PreNormBlock(torch.autograd.Function):
    """Launches the operators' kernels, with torch's products between them."""

    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        branch: Tensor | None,
        branch_bias: Tensor | None,
        cu_seqlens: Tensor,
        rows: Tensor | None,
        options: BlockOptions,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        from flava_kernels.triton_ops import attention as attending
        from flava_kernels.triton_ops import layer_norm as normalising
        from flava_kernels.triton_ops import linear_gelu as activating

        own = BlockWeights(*parameters)
        longest, equal, causal, num_heads, eps, recomputes = options
        checks.sequences("pre_norm_block", cu_seqlens, stream.shape[0], longest, equal_lengths=equal)
        summands = (stream, None) if branch is None else (branch, stream)
        x, s1, *moments = normalising.forward(*summands, own.attention_norm, own.attention_norm_bias, eps)
        qkv = F.linear(x, own.qkv, own.qkv_bias).view(x.shape[0], 3, num_heads, -1)
        context, lse = attending.forward(qkv, cu_seqlens, longest, causal)
        c, kept_c, stream = context.view(x.shape), None, s1
        if rows is not None:
            kept_c = c = c.index_select(0, rows)
            stream = s1.index_select(0, rows)
        a = F.linear(c, own.output, own.output_bias)
        y, s2, *others = normalising.forward(a, stream, own.mlp_norm, own.mlp_norm_bias, eps)
        z = F.linear(y, own.up, own.up_bias)
        g = activating.forward(z)
        ctx.options, ctx.adds = options, branch is not None
        ctx.save_for_backward(
            branch_bias, cu_seqlens, rows, s1, *moments, x, qkv, context, lse, kept_c,
            s2, *others, y, z, None if recomputes else g, *parameters,
        )  # fmt: skip
        return s2, F.linear(g, own.down, own.down_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_s2: Tensor, d_branch: Tensor) -> tuple[Tensor | None, ...]:
        from flava_kernels.triton_ops import attention as attending
        from flava_kernels.triton_ops import layer_norm as normalising
        from flava_kernels.triton_ops import linear_gelu as activating

        saved, options, size = ctx.saved_tensors, ctx.options, len(_Kept._fields)
        kept, own = _Kept(*saved[:size]), BlockWeights(*saved[size:])
        g = activating.forward(kept.z) if kept.g is None else kept.g
        d_down = d_branch.T @ g
        d_z, d_up_bias = activating.backward(d_branch @ own.down, kept.z)
        d_up, d_y = d_z.T @ kept.y, d_z @ own.up
        del g, d_z  # [T f]
        norm = kept.s2, kept.mean_2, kept.rstd_2, own.mlp_norm, own.mlp_norm_bias, True, own.output_bias
        d_a, *d_mlp_norm, d_output_bias = normalising.backward(d_y, d_s2, *norm)
        c = kept.context.view(kept.x.shape) if kept.c is None else kept.c
        d_output, d_c, d_s1 = d_a.T @ c, d_a @ own.output, d_a
        if kept.rows is not None:
            d_c, d_s1 = (torch.zeros_like(kept.x).index_add_(0, kept.rows, part) for part in (d_c, d_s1))
        sequences = kept.cu_seqlens, options.max_seqlen, options.causal
        d_qkv, d_qkv_bias = attending.backward(
            d_c.view(kept.context.shape), kept.qkv, kept.context, kept.lse, *sequences, own.qkv_bias
        )
        d_qkv = d_qkv.view(kept.x.shape[0], -1)
        d_qkv_weight = d_qkv.T @ kept.x
        # A LayerNorm alone does not hand its stream on, whose gradient is added outside.
        folded = kept.branch_bias if ctx.needs_input_grad[2] else None
        norm = kept.s1, kept.mean_1, kept.rstd_1, own.attention_norm, own.attention_norm_bias, True, folded
        d_sum, *d_norm, d_bias = normalising.backward(d_qkv @ own.qkv, d_s1 if ctx.adds else None, *norm)
        d_stream, d_added = (d_sum, d_sum) if ctx.adds else (d_sum + d_s1, None)
        return (
            d_stream, d_added, None if folded is None else d_bias, None, None, None,
            *d_norm, d_qkv_weight, d_qkv_bias, d_output, d_output_bias,
            *d_mlp_norm, d_up, d_up_bias.to(own.up_bias.dtype), d_down, None,
        )  # fmt: skip
