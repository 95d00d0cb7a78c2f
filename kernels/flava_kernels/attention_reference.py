"""Self-attention over packed sequences in torch's own operators: what runs on a CPU, and wherever the kernels do not.

Sequences of unequal lengths are padded first. The backward pass and `EagerAttention` go head by head: a head's queries, keys and values are then
[b s e] views of the packed projection, whose strides a batched product takes as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flava_kernels.eager import once_differentiable
from flava_kernels.packing import padded_rows, padded_slots, to_packed

SCORES_BYTES = 2**28
"""Scores of one head that the backward pass computes at one time."""

LONGEST_KEPT = 5
"""Head sizes that a sequence may be long while its probabilities are kept: they take s/e as much memory as the queries."""


def forward_reference(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool) -> tuple[Tensor, Tensor]:
    """Attends without keeping the scores where it can: on a CPU with PyTorch's flash kernel.

    Shapes:
        out  [T h e]
        lse  [h T]    log2 of each query's sum of exponentials, in fp32 at least
    """
    attend = flash_attention_on_cpu if qkv.device.type == "cpu" else plain_attention
    padding = _Padding(cu_seqlens, max_seqlen, equal_lengths, qkv.shape[0])
    out, lse = attend(padding.pad(qkv), padding.keys)
    return padding.pack(out).contiguous(), padding.pack(lse.permute(0, 2, 1)).mT.contiguous() / math.log(2)


def flash_attention_on_cpu(padded: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """What scaled_dot_product_attention runs on a CPU, with its log-sum-exp: [b s 3 h e], [b s] -> [b s h e], [b h s]."""
    q, k, v = padded.permute(2, 0, 3, 1, 4)
    mask = None if valid is None else _mask(valid, q.dtype)[:, None]
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
    """Computes the scores again: [T h e], [T 3 h e] -> [T 3 h e].

    PyTorch's own flash backward for CPUs takes 2 to 6 times as long at these lengths.
    """
    padding = _Padding(cu_seqlens, max_seqlen, equal_lengths, qkv.shape[0])
    return _gradient(grad, padding.pad(qkv), padding, None)


def _gradient(grad: Tensor, padded: Tensor, padding: _Padding, probabilities: Sequence[Tensor] | None) -> Tensor:
    """Goes head by head and, where the probabilities were not kept, some sequences at a time.

    Shapes:
        grad           [T h e]
        padded         [b s 3 h e]
        probabilities  for each head [b s s]
        returns        [T 3 h e]
    """
    d_out, d_qkv = padding.pad_with_zeros(grad), torch.empty_like(padded, memory_format=torch.contiguous_format)
    batch, longest, _, _, head_size = padded.shape
    size = batch if probabilities is not None else max(1, SCORES_BYTES // (longest**2 * padded.element_size()))
    for start in range(0, batch, size):
        some = slice(start, start + size)
        mask = None if padding.keys is None or probabilities is not None else _mask(padding.keys[some], padded.dtype)
        for head, (q, k, v, d, d_q, d_k, d_v) in enumerate(zip(*_by_head(padded[some]), d_out[some].unbind(2), *_by_head(d_qkv[some]), strict=True)):
            p = _probabilities(q, k, mask) if probabilities is None else probabilities[head]
            d_scores = torch._softmax_backward_data(torch.bmm(d, v.mT), p, -1, p.dtype)
            d_q.copy_(_scaled_product(d_scores, k, head_size**-0.5))
            d_k.copy_(_scaled_product(d_scores.mT, q, head_size**-0.5))
            d_v.copy_(torch.bmm(p.mT, d))
    return padding.pack(d_qkv)


def keeps_probabilities(qkv: Tensor, max_seqlen: int) -> bool:
    """Tells whether sequences are short enough for `EagerAttention`: FLAVA's 275 are, at heads of 64.

    Under autocast the probabilities would be of another dtype than the gradients that come back.
    """
    return 0 < max_seqlen <= LONGEST_KEPT * qkv.shape[3] and qkv.numel() > 0 and not torch.is_autocast_enabled(qkv.device.type)


class EagerAttention(torch.autograd.Function):
    """Attends head by head and keeps the probabilities, for sequences so short that those are small.

    On a CPU it takes about two thirds of the time of PyTorch's flash kernel and a backward pass that computes the scores again.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool, gradients: bool) -> Tensor:
        padding, kept = _Padding(cu_seqlens, max_seqlen, equal_lengths, qkv.shape[0]), []
        padded, mask = padding.pad(qkv), None if padding.keys is None else _mask(padding.keys, qkv.dtype)
        out = qkv.new_empty(*padded.shape[:2], *qkv.shape[2:])
        for q, k, v, head_out in zip(*_by_head(padded), out.unbind(2), strict=True):
            p = _probabilities(q, k, mask)
            head_out.copy_(torch.bmm(p, v))
            if gradients:
                kept.append(p)
        ctx.padding = padding
        ctx.save_for_backward(padded, *kept)
        return padding.pack(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        padded, *probabilities = ctx.saved_tensors
        return _gradient(grad, padded, ctx.padding, probabilities), None, None, None, None


def _by_head(padded: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields queries, keys and values, each as one view for every head: [b s 3 h e] -> three times h times [b s e]."""
    return (part.unbind(2) for part in padded.unbind(2))


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Returns softmax(q K^T / sqrt(e) + mask): [b s e], [b s e], [b 1 s] -> [b s s]."""
    scale = q.shape[-1] ** -0.5
    scores = _scaled_product(q, k.mT, scale) if mask is None else torch.baddbmm(mask, q, k.mT, alpha=scale)
    return scores.softmax(-1)


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Returns left right * scale: [b n k], [b k m] -> [b n m]."""
    return torch.baddbmm(left.new_empty(*left.shape[:2], right.shape[2]), left, right, beta=0, alpha=scale)


def _mask(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what is added to the scores: 0, and -inf for keys that do not count: [b s] -> [b 1 s]."""
    return torch.zeros(keys.shape, dtype=dtype, device=keys.device).masked_fill_(~keys, float("-inf"))[:, None]


class _Padding:
    """The layout in which all sequences are as long as the longest; where they are anyway, a view of the packed one.

    `keys` tells which rows of it count as keys, [b s], or is None for all. An empty sequence keeps one, so that its softmax is defined.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool, total: int) -> None:
        self._longest, self._rows, self._slots, self.keys = max_seqlen, None, None, None
        if not equal_lengths:
            self._rows, self._slots = padded_rows(cu_seqlens, max_seqlen), padded_slots(cu_seqlens, max_seqlen, total)
            self.keys = torch.arange(max_seqlen, device=cu_seqlens.device) < cu_seqlens.diff().clamp(min=1)[:, None]

    def pad(self, packed: Tensor) -> Tensor:
        """Lays sequences out at one length: [T ...] -> [b s ...]. A place behind a sequence holds a row of its own."""
        if self._rows is None:
            return packed.unflatten(0, (-1, self._longest))
        return packed.index_select(0, self._rows.flatten()).unflatten(0, self._rows.shape)

    def pad_with_zeros(self, packed: Tensor) -> Tensor:
        """The same with zeros behind each sequence."""
        if self._rows is None:
            return packed.unflatten(0, (-1, self._longest))
        return packed.new_zeros(self._rows.numel(), *packed.shape[1:]).index_copy_(0, self._slots, packed).unflatten(0, self._rows.shape)

    def pack(self, padded: Tensor) -> Tensor:
        """The way back: [b s ...] -> [T ...]."""
        return padded.flatten(0, 1) if self._slots is None else to_packed(padded, self._slots)
