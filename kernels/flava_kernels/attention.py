"""Self-attention over packed sequences.

    out_i = softmax(q_i K^T * scale) V,  keys and values of the query's own sequence only

This is the only operator that knows where one sequence ends and the next begins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def varlen_attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, equal_lengths: bool = False) -> Tensor:
    """Attends within each packed sequence; never waits for the device.

    Shapes:
        qkv         [T 3 h e]
        cu_seqlens  [b+1]     int32
        returns     [T h e]

    `equal_lengths` promises that every sequence is max_seqlen long (images), so that no padded copy is made.
    """
    return forward_reference(qkv, cu_seqlens, max_seqlen, equal_lengths=equal_lengths)


def forward_reference(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, equal_lengths: bool = False) -> Tensor:
    """Runs PyTorch's scaled_dot_product_attention on a padded copy, or on a plain view when all lengths are equal."""
    total, _, heads, head_size = qkv.shape
    batch = cu_seqlens.shape[0] - 1
    if total == 0:
        return qkv[:, 0]
    if equal_lengths:
        q, k, v = qkv.view(batch, max_seqlen, 3, heads, head_size).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(total, heads, head_size)
    slots, valid = padded_slots(cu_seqlens, max_seqlen, total)
    padded = qkv.new_zeros(batch * max_seqlen, 3 * heads * head_size).index_copy(0, slots, qkv.reshape(total, -1))
    q, k, v = padded.view(batch, max_seqlen, 3, heads, head_size).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
    return out.transpose(1, 2).reshape(batch * max_seqlen, heads * head_size).index_select(0, slots).view(total, heads, head_size)


def padded_slots(cu_seqlens: Tensor, max_seqlen: int, total: int) -> tuple[Tensor, Tensor]:
    """Returns where each packed row lies in a [b * max_seqlen] padded layout, and which padded keys are real.

    Shapes:
        slots  [T]             int64
        valid  [b max_seqlen]  bool; an empty sequence keeps its first key so that its softmax is defined
    """
    cu = cu_seqlens.long()
    rows = torch.arange(total, device=cu.device)
    sequence = torch.bucketize(rows, cu[1:], right=True)
    slots = sequence * max_seqlen + rows - cu[sequence]
    lengths = (cu[1:] - cu[:-1]).clamp(min=1)
    return slots, torch.arange(max_seqlen, device=cu.device) < lengths[:, None]
