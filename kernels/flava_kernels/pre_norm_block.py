"""A pre-norm block of a transformer as one node of autograd, for hosts that have no time for a dozen.

    s1 = stream + branch,  x = LayerNorm(s1),  qkv = x Wq^T + bq,  c = attention(qkv),  a = c Wo^T + bo
    s2 = s1 + a,           y = LayerNorm(s2),  z = y Wu^T + bu,    g = GELU(z)

The MLP's second layer stays outside: a checkpoint that computes a block again needs none of its result, and
stops before it. Launches and products are those of the block's layers, in the same order, so results and
gradients are the same bit for bit, and so are the tensors that are kept. What is saved is Python: calls of
modules, choices of implementations, nodes of autograd. Biases fold (folded_bias.py).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_kernels import attention, dispatch, layer_norm, linear_gelu
from flava_kernels.eager import once_differentiable, without_autocast


class BlockWeights(NamedTuple):
    """The parameters of a block, but for the MLP's second layer.

    Shapes:
        attention_norm, mlp_norm  [d]      with their biases [d]
        qkv                       [3*d d]  [3*d]
        output                    [d d]    [d]
        up                        [f d]    [f]
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


class BlockOptions(NamedTuple):
    """What a block needs beside tensors; the first three are those of `varlen_attention`."""

    max_seqlen: int
    equal_lengths: bool
    causal: bool
    num_heads: int
    attention_eps: float
    mlp_eps: float
    activates: bool
    """Apply GELU; otherwise the next layer does (`gelu_linear`)."""


def takes(
    stream: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    cu_seqlens: Tensor,
    options: BlockOptions,
    weights: BlockWeights,
) -> bool:
    """Returns True if `pre_norm_block` may stand for the layers: their operators would all run kernels, all
    gradients are wanted, and no compiler, dispatch mode or autocast changes what they do.
    """
    if not torch.is_grad_enabled() or dispatch.needs_custom_operator(stream) or stream.dim() != 2:
        return False
    if torch._C._is_any_autocast_enabled() or dispatch.implementation(stream.device.type, None) != "triton":
        return False
    dtype, width, plain = stream.dtype, stream.shape[1], dispatch.PLAIN_TENSORS
    for own in weights:
        if (
            type(own) not in plain
            or own.dtype is not dtype
            or not own.requires_grad
            or not own.is_contiguous()
        ):
            return False
    rows = (stream,) if branch is None else (stream, branch)
    if any(each.dtype is not dtype or each.shape != stream.shape or each.stride(1) != 1 for each in rows):
        return False
    if branch_bias is not None and (branch_bias.dtype is not dtype or branch_bias.shape != (width,)):
        return False
    if cu_seqlens.dtype is not torch.int32 or not cu_seqlens.is_contiguous():
        return False
    shapes = tuple([own.shape for own in weights])
    return _supported(dtype, width, shapes, options.num_heads, options.max_seqlen, cu_seqlens.shape[0])


@functools.lru_cache(1024)
def _supported(
    dtype: torch.dtype,
    width: int,
    shapes: tuple[tuple[int, ...], ...],
    num_heads: int,
    max_seqlen: int,
    bounds: int,
) -> bool:
    """Compares the shapes of weights, and asks the operators about rows of these sizes."""
    own: Any = BlockWeights._make(shapes)
    products = own.qkv == (3 * width, width) and own.output == (width, width) and own.up[1:] == (width,)
    norms = own.attention_norm, own.attention_norm_bias, own.mlp_norm, own.mlp_norm_bias
    if not products or set(norms) != {(width,)} or width % num_heads:
        return False
    rows, wide = (torch.empty(1, size, dtype=dtype, device="meta") for size in (width, own.up[0]))
    qkv = torch.empty(1, 3, num_heads, width // num_heads, dtype=dtype, device="meta")
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
    """Computes a block that `takes` has taken, up to what its MLP's second layer reads.

    Shapes:
        stream       [T d]
        branch       [T d]  still to be added to the stream; None for none
        branch_bias  [d]    which branch's layer has added detached: only its gradient is computed here
        cu_seqlens   [b+1]  int32
        rows         [k]    everything after attention is computed for these only; None for all
        returns      the stream [T d] and the MLP's activations [T f]; k rows of both with `rows`
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
    z: Tensor | None


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
        from flava_kernels.triton_ops import layer_norm as normalising
        from flava_kernels.triton_ops import linear_gelu as activating

        own, (tokens, width) = BlockWeights(*parameters), stream.shape
        summands = (stream, None) if branch is None else (branch, stream)
        norm = own.attention_norm, own.attention_norm_bias, options.attention_eps
        x, s1, *moments = normalising.forward(*summands, *norm)
        parts = tokens, 3, options.num_heads, width // options.num_heads
        qkv = F.linear(x, own.qkv, own.qkv_bias).view(parts)
        context, lse = attention.attend(True, qkv, cu_seqlens, *options[:3])
        c, kept_c, stream = context.view(tokens, width), None, s1
        if rows is not None:
            kept_c = c = c.index_select(0, rows)
            stream = s1.index_select(0, rows)
        a = F.linear(c, own.output, own.output_bias)
        norm = own.mlp_norm, own.mlp_norm_bias, options.mlp_eps
        y, s2, *others = normalising.forward(a, stream, *norm)
        z = F.linear(y, own.up, own.up_bias)
        ctx.options, ctx.adds = options, branch is not None
        ctx.save_for_backward(
            branch_bias, cu_seqlens, rows, s1, *moments, x, qkv, context, lse, kept_c,
            s2, *others, y, z if options.activates else None, *parameters,
        )  # fmt: skip
        return s2, activating.forward(z) if options.activates else z

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, d_s2: Tensor, d_activations: Tensor) -> tuple[Tensor | None, ...]:
        from flava_kernels.triton_ops import layer_norm as normalising
        from flava_kernels.triton_ops import linear_gelu as activating

        saved, options, size = ctx.saved_tensors, ctx.options, len(_Kept._fields)
        kept, own = _Kept(*saved[:size]), BlockWeights(*saved[size:])
        if kept.z is None:
            d_z, d_up_bias = d_activations, d_activations.sum(0)
        else:
            d_z, d_up_bias = activating.backward(d_activations, kept.z)
        d_up, d_y = d_z.T @ kept.y, d_z @ own.up
        del d_z, d_activations  # [T f]
        norm_2 = kept.s2, kept.mean_2, kept.rstd_2, own.mlp_norm, own.mlp_norm_bias, True, own.output_bias
        d_a, *d_mlp_norm, d_output_bias = normalising.backward(d_y, d_s2, *norm_2)
        c = kept.context.view(kept.x.shape) if kept.c is None else kept.c
        d_output, d_c, d_s1 = d_a.T @ c, d_a @ own.output, d_a
        if kept.rows is not None:
            d_c, d_s1 = (torch.zeros_like(kept.x).index_add_(0, kept.rows, part) for part in (d_c, d_s1))
        sequences = kept.cu_seqlens, *options[:3], own.qkv_bias
        d_qkv, d_qkv_bias = attention.attend_backward(
            True, d_c.view(kept.context.shape), kept.qkv, kept.context, kept.lse, *sequences
        )
        d_qkv = d_qkv.view(kept.x.shape[0], -1) if d_qkv.numel() else kept.x.new_empty(0, own.qkv.shape[0])
        d_qkv_weight = d_qkv.T @ kept.x
        # A LayerNorm alone does not hand its stream on, whose gradient is added outside.
        folded = kept.branch_bias if ctx.needs_input_grad[2] else None
        norm_1 = kept.s1, kept.mean_1, kept.rstd_1, own.attention_norm, own.attention_norm_bias, True, folded
        d_sum, *d_norm, d_bias = normalising.backward(d_qkv @ own.qkv, d_s1 if ctx.adds else None, *norm_1)
        d_stream, d_added = (d_sum, d_sum) if ctx.adds else (d_sum + d_s1, None)
        return (
            d_stream, d_added, None if folded is None else d_bias, None, None, None,
            *d_norm, d_qkv_weight, d_qkv_bias, d_output, d_output_bias,
            *d_mlp_norm, d_up, d_up_bias.to(own.up_bias.dtype),
        )  # fmt: skip
