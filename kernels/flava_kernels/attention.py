"""Self-attention over packed sequences.

    out_i = softmax(q_i K^T * scale) V,  keys and values of the query's own sequence only

    dV = P^T dO,   dP = dO V^T,   dS = P * (dP - rowsum(P * dP)) * scale,   dQ = dS K,   dK = dS^T Q

This is the only operator that knows where one sequence ends and the next begins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_BUDGET_BYTES = 2**19
"""Scores that the CPU backward pass holds at one time: they should stay in a core's cache."""


def varlen_attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, equal_lengths: bool = False) -> Tensor:
    """Attends within each packed sequence; never waits for the device.

    Shapes:
        qkv         [T 3 h e]
        cu_seqlens  [b+1]     int32
        returns     [T h e]

    `equal_lengths` promises that every sequence is max_seqlen long (images), so that no padded copy is made.
    """
    if qkv.shape[0] == 0:
        return qkv[:, 0]
    slots, valid = (None, None) if equal_lengths else padded_slots(cu_seqlens, max_seqlen, qkv.shape[0])
    shape = (cu_seqlens.shape[0] - 1, max_seqlen)
    padded = _pad(qkv, slots, shape)
    attend = _CPUAttention.apply if qkv.device.type == "cpu" else forward_reference
    return _unpad(attend(padded, valid).flatten(0, 1), slots)


def forward_reference(padded: Tensor, valid: Tensor | None) -> Tensor:
    """Runs PyTorch's scaled_dot_product_attention: [b s 3 h e], [b s] -> [b s h e]."""
    q, k, v = padded.permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if valid is None else valid[:, None, None, :])
    return out.transpose(1, 2)


def backward_reference(grad: Tensor, padded: Tensor, valid: Tensor | None) -> Tensor:
    """Recomputes the softmax a few samples at a time: [b s h e], [b s 3 h e], [b s] -> [b s 3 h e]."""
    batch, length, _, heads, head_size = padded.shape
    d_qkv, d_out, scale = torch.empty_like(padded), grad.transpose(1, 2), head_size**-0.5
    samples = max(1, SCORES_BUDGET_BYTES // (heads * length**2 * padded.element_size()))
    for start in range(0, batch, samples):
        chunk = slice(start, start + samples)
        (q, k, v), d = (part.contiguous() for part in padded[chunk].permute(2, 0, 3, 1, 4)), d_out[chunk].contiguous()
        scores = (q * scale) @ k.mT
        if valid is not None:
            scores.masked_fill_(~valid[chunk, None, None, :], float("-inf"))
        p = scores.softmax(-1)
        d_qkv[chunk, :, 2].copy_((p.mT @ d).transpose(1, 2))
        d_scores = torch._softmax_backward_data(d @ v.mT, p, -1, p.dtype).mul_(scale)
        d_qkv[chunk, :, 0].copy_((d_scores @ k).transpose(1, 2))
        d_qkv[chunk, :, 1].copy_((d_scores.mT @ q).transpose(1, 2))
    return d_qkv


class _CPUAttention(torch.autograd.Function):
    """PyTorch's CPU forward with our backward: its own flash backward takes 2 to 6 times as long at these lengths."""

    @staticmethod
    def forward(ctx, padded, valid):
        ctx.save_for_backward(padded, valid)
        return forward_reference(padded, valid)

    @staticmethod
    def backward(ctx, grad):
        return backward_reference(grad, *ctx.saved_tensors), None


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


def _pad(packed: Tensor, slots: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """[T ...] -> [b s ...], zeros where nothing is."""
    if slots is None:
        return packed.view(*shape, *packed.shape[1:])
    padded = packed.new_zeros(shape[0] * shape[1], *packed.shape[1:])
    return padded.index_copy_(0, slots, packed).view(*shape, *packed.shape[1:])


def _unpad(flat: Tensor, slots: Tensor | None) -> Tensor:
    """[b*s ...] -> [T ...]."""
    return flat if slots is None else flat.index_select(0, slots)
