"""FLOP formulas of operators that torch's FlopCounterMode cannot see into; importing registers them.

A separate module, because torch.utils.flop_counter imports triton, which takes longer than everything else
here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import flava_kernels.contrastive
import flava_kernels.cross_attention
import flava_kernels.linear_cross_entropy
import flava_kernels.linear_gelu
import flava_kernels.sigmoid_loss  # noqa: F401  defines the operators
from flava_kernels import attention


@register_flop_formula(torch.ops.flava_kernels.varlen_attention)
def attention_forward(
    qkv_shape: torch.Size,
    cu_seqlens_shape: torch.Size,
    max_seqlen: int,
    equal_lengths: bool,
    causal: bool,
    *_: Any,
    **__: Any,
) -> int:
    """Counts two products, as if every sequence were the longest: the lengths are on the device."""
    return 4 * (cu_seqlens_shape[0] - 1) * attention.pairs(max_seqlen, causal) * qkv_shape[2] * qkv_shape[3]


@register_flop_formula(torch.ops.flava_kernels.varlen_attention_backward)
def attention_backward(
    grad_shape: torch.Size,
    qkv_shape: torch.Size,
    saved_out_shape: torch.Size,
    lse_shape: torch.Size,
    cu_seqlens_shape: torch.Size,
    max_seqlen: int,
    equal_lengths: bool,
    causal: bool,
    *_: Any,
    **__: Any,
) -> int:
    """Counts five products: the scores are recomputed."""
    return 10 * (cu_seqlens_shape[0] - 1) * attention.pairs(max_seqlen, causal) * qkv_shape[2] * qkv_shape[3]


@register_flop_formula(torch.ops.flava_kernels.varlen_cross_attention)
def cross_attention_forward(
    q_shape: torch.Size,
    kv_shape: torch.Size,
    cu_seqlens_q_shape: torch.Size,
    cu_seqlens_k_shape: torch.Size,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *_: Any,
    **__: Any,
) -> int:
    """Counts two products, as if every sequence had the most queries and keys."""
    return 4 * (cu_seqlens_q_shape[0] - 1) * max_seqlen_q * max_seqlen_k * q_shape[1] * q_shape[2]


@register_flop_formula(torch.ops.flava_kernels.varlen_cross_attention_backward)
def cross_attention_backward(
    grad_shape: torch.Size,
    q_shape: torch.Size,
    kv_shape: torch.Size,
    saved_out_shape: torch.Size,
    lse_shape: torch.Size,
    cu_seqlens_q_shape: torch.Size,
    cu_seqlens_k_shape: torch.Size,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *_: Any,
    **__: Any,
) -> int:
    """Counts five products: the scores are recomputed."""
    return 10 * (cu_seqlens_q_shape[0] - 1) * max_seqlen_q * max_seqlen_k * q_shape[1] * q_shape[2]


@register_flop_formula(torch.ops.flava_kernels.linear_gelu)
def linear_gelu_forward(hidden_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
    """Counts one product."""
    return 2 * hidden_shape[0] * weight_shape[0] * weight_shape[1]


@register_flop_formula(torch.ops.flava_kernels.linear_gelu_backward)
def linear_gelu_backward(
    grad_shape: torch.Size,
    z_shape: torch.Size,
    hidden_shape: torch.Size,
    weight_shape: torch.Size,
    bias_shape: torch.Size,
    needs: list[bool],
    *_: Any,
    **__: Any,
) -> int:
    """Counts a product each for dh and dW, where needed."""
    return 2 * sum(needs[:2]) * hidden_shape[0] * weight_shape[0] * weight_shape[1]


@register_flop_formula(torch.ops.flava_kernels.linear_cross_entropy)
def linear_cross_entropy(
    hidden_shape: torch.Size,
    weight_shape: torch.Size,
    bias_shape: torch.Size,
    labels_shape: torch.Size,
    rows_shape: torch.Size | None,
    gradients: list[bool],
    *_: Any,
    **__: Any,
) -> int:
    """Counts the logits, dH and dW: all are computed forward, and the backward pass only scales them."""
    return 2 * (1 + sum(gradients[:2])) * labels_shape[0] * weight_shape[0] * weight_shape[1]


@register_flop_formula(torch.ops.flava_kernels.info_nce_forward)
def info_nce_forward(rows_shape: torch.Size, columns_shape: torch.Size, *_: Any, **__: Any) -> int:
    """Counts one product."""
    return 2 * rows_shape[0] * columns_shape[0] * rows_shape[1]


@register_flop_formula(torch.ops.flava_kernels.info_nce_backward)
def info_nce_backward(
    grad_shape: torch.Size,
    rows_shape: torch.Size,
    columns_shape: torch.Size,
    scale_shape: torch.Size,
    row_vectors_shape: torch.Size,
    column_vectors_shape: torch.Size,
    offset: int,
    both: bool,
    *_: Any,
    **__: Any,
) -> int:
    """Counts the similarities again, the gradient of the rows and, with `both`, that of the columns."""
    return (6 if both else 4) * rows_shape[0] * columns_shape[0] * rows_shape[1]


@register_flop_formula(torch.ops.flava_kernels.sigmoid_loss)
def sigmoid_loss(
    rows_shape: torch.Size,
    columns_shape: torch.Size,
    scale_shape: torch.Size,
    bias_shape: torch.Size,
    row_mask_shape: torch.Size,
    offset: int,
    gradients: list[bool],
    *_: Any,
    **__: Any,
) -> int:
    """Counts the logits, and the gradients that are wanted, which the backward pass only scales."""
    return 2 * (1 + sum(gradients)) * rows_shape[0] * columns_shape[0] * rows_shape[1]
