"""FLOP formulas of the operators whose products torch's FlopCounterMode cannot see. Importing this module registers them.

It stands apart because torch.utils.flop_counter imports triton, which takes longer than everything else here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import flava_kernels.attention  # noqa: F401  defines the operators


@register_flop_formula(torch.ops.flava_kernels.varlen_attention)
def attention_forward(qkv_shape: torch.Size, cu_seqlens_shape: torch.Size, max_seqlen: int, *_: Any, **__: Any) -> int:
    """Two products, as if every sequence were the longest: the lengths are on the device."""
    return 4 * (cu_seqlens_shape[0] - 1) * max_seqlen**2 * qkv_shape[2] * qkv_shape[3]


@register_flop_formula(torch.ops.flava_kernels.varlen_attention_backward)
def attention_backward(
    grad_shape: torch.Size,
    qkv_shape: torch.Size,
    saved_out_shape: torch.Size,
    lse_shape: torch.Size,
    cu_seqlens_shape: torch.Size,
    max_seqlen: int,
    *_: Any,
    **__: Any,
) -> int:
    """Five products: the scores are computed again."""
    return 10 * (cu_seqlens_shape[0] - 1) * max_seqlen**2 * qkv_shape[2] * qkv_shape[3]
