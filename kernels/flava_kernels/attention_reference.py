"""Attention over packed sequences in torch operators, for CPUs and unsupported inputs.

Sequences of unequal lengths are padded first. Causal attention needs no padding mask, since padding comes
after every real query. The backward pass and `EagerAttention` go head by head: a head's queries, keys and
values are [b s e] views of the packed projection, whose strides a batched product accepts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flava_kernels import folded_bias
from flava_kernels.eager import once_differentiable, without_autocast
from flava_kernels.packing import padded_rows, padded_slots, to_packed

SCORES_BYTES = 2**28
"""Size of the scores of one head that the backward pass computes at a time."""

LONGEST_KEPT = 5
"""Longest sequence, in head sizes, whose probabilities are kept: they take s/e times the queries' memory."""

CAUSAL_QUERIES = 64
"""Queries per block of causal attention; keys after the block's last query are left out.

Smaller blocks skip more of the products but make them smaller. Eight fp32 heads of 64 take, forward and
backward, 85 % of the CPU time of full squares at 77 tokens and 71 % at 275; 48 queries are no better, 32 are
slower.
"""


def forward_reference(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attends without storing the scores where possible: on a CPU with PyTorch's flash kernel.

    Shapes:
        out  [T h e]
        lse  [h T]    log2 of each query's sum of exponentials, in fp32 at least
    """
    attend = flash_attention_on_cpu if qkv.device.type == "cpu" else plain_attention
    padding = _Padding(cu_seqlens, max_seqlen, equal_lengths, causal, qkv.shape[0])
    out, lse = attend(padding.pad(qkv), padding.keys, causal)
    return padding.pack(out).contiguous(), padding.pack(lse.permute(0, 2, 1)).mT.contiguous() / math.log(2)


def flash_attention_on_cpu(padded: Tensor, valid: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    """Runs scaled_dot_product_attention's CPU kernel: [b s 3 h e], [b s] -> [b s h e], lse [b h s]."""
    q, k, v = padded.permute(2, 0, 3, 1, 4)
    mask = None if valid is None else _mask(valid, q.dtype)[:, None]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, is_causal=causal, attn_mask=mask
    )
    return out.transpose(1, 2), lse


def plain_attention(padded: Tensor, valid: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    """Attends in separate steps, for any device."""
    q, k, v = padded.permute(2, 0, 3, 1, 4)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if valid is not None:
        scores.masked_fill_(~valid[:, None, None, :], float("-inf"))
    if causal:
        scores += _behind(0, scores.shape[-1], scores)
    lse = scores.to(torch.promote_types(scores.dtype, torch.float32)).logsumexp(-1)
    return (scores.softmax(-1) @ v).transpose(1, 2), lse


def backward_reference(
    grad: Tensor, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool, causal: bool
) -> Tensor:
    """Recomputes the scores: [T h e], [T 3 h e] -> [T 3 h e].

    PyTorch's own flash backward for CPUs takes 2 to 6 times as long at these lengths.
    """
    padding = _Padding(cu_seqlens, max_seqlen, equal_lengths, causal, qkv.shape[0])
    return _gradient(grad, padding.pad(qkv), padding, None)


def _gradient(
    grad: Tensor, padded: Tensor, padding: _Padding, probabilities: Sequence[Tensor] | None
) -> Tensor:
    """Goes head by head and, if the probabilities were not kept, a few sequences at a time.

    Shapes:
        grad           [T h e]
        padded         [b s 3 h e]
        probabilities  for each head and each of its blocks, [b n m]
        returns        [T 3 h e]
    """
    d_out, d_qkv = (
        padding.pad_with_zeros(grad),
        torch.empty_like(padded, memory_format=torch.contiguous_format),
    )
    batch, longest, _, _, head_size = padded.shape
    size = (
        batch if probabilities is not None else max(1, SCORES_BYTES // (longest**2 * padded.element_size()))
    )
    kept = None if probabilities is None else iter(probabilities)
    for start in range(0, batch, size):
        some = slice(start, start + size)
        blocks = padding.blocks(padded[some], some)
        for q, k, v, d, d_q, d_k, d_v in zip(
            *_by_head(padded[some]), d_out[some].unbind(2), *_by_head(d_qkv[some]), strict=True
        ):
            for place, (rows, keys, mask) in enumerate(blocks):
                p = _probabilities(q[:, rows], k[:, keys], mask) if kept is None else next(kept)
                d_scores = _gradient_of_scores(d[:, rows], v[:, keys], p)
                d_q[:, rows].copy_(_scaled_product(d_scores, k[:, keys], head_size**-0.5))
                write = Tensor.add_ if place else Tensor.copy_  # the first block covers all keys
                write(d_k[:, keys], _scaled_product(d_scores.mT, q[:, rows], head_size**-0.5))
                write(d_v[:, keys], torch.bmm(p.mT, d[:, rows]))
    return padding.pack(d_qkv)


def _gradient_of_scores(grad: Tensor, v: Tensor, p: Tensor) -> Tensor:
    """Returns the gradient of the scores behind the softmax: [b n e], [b m e], [b n m] -> [b n m]."""
    return torch._softmax_backward_data(torch.bmm(grad, v.mT), p, -1, p.dtype)


def cross_forward_reference(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    equal_keys: bool,
) -> tuple[Tensor, Tensor]:
    """Attends head by head from padded queries to padded keys: returns out and lse of `forward_reference`."""
    queries, keys = (
        _Padding(cu_seqlens_q, max_seqlen_q, False, False, q.shape[0]),
        _Padding(cu_seqlens_k, max_seqlen_k, equal_keys, False, kv.shape[0]),
    )
    padded = queries.pad_with_zeros(q)
    out = torch.empty_like(padded)
    lse = padded.new_empty(padded.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    mask = None if keys.keys is None else _mask(keys.keys, q.dtype)
    for head_q, k, v, head_out, head_lse in zip(
        padded.unbind(2), *_by_head(keys.pad(kv)), out.unbind(2), lse.unbind(2), strict=True
    ):
        scores = _scores(head_q, k, mask)
        head_lse.copy_(scores.to(lse.dtype).logsumexp(-1))
        head_out.copy_(torch.bmm(scores.softmax(-1), v))
    if not equal_keys:
        without = (cu_seqlens_k.diff() == 0)[:, None, None]
        out.masked_fill_(without[..., None], 0.0)
        lse.masked_fill_(without, float("-inf"))
    return queries.pack(out).contiguous(), queries.pack(lse).mT.contiguous() / math.log(2)


def cross_backward_reference(
    grad: Tensor,
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    equal_keys: bool,
) -> tuple[Tensor, Tensor]:
    """Recomputes the scores: [Tq h e], [Tq h e], [Tk 2 h e] -> [Tq h e], [Tk 2 h e]."""
    queries, keys = (
        _Padding(cu_seqlens_q, max_seqlen_q, False, False, q.shape[0]),
        _Padding(cu_seqlens_k, max_seqlen_k, equal_keys, False, kv.shape[0]),
    )
    padded, padded_kv = queries.pad_with_zeros(q), keys.pad(kv)
    d_q, d_kv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (padded, padded_kv))
    mask, scale = None if keys.keys is None else _mask(keys.keys, q.dtype), q.shape[2] ** -0.5
    for head_q, k, v, d, head_d_q, d_k, d_v in zip(
        padded.unbind(2),
        *_by_head(padded_kv),
        queries.pad_with_zeros(grad).unbind(2),
        d_q.unbind(2),
        *_by_head(d_kv),
        strict=True,
    ):
        p = _scores(head_q, k, mask).softmax(-1)
        d_scores = _gradient_of_scores(d, v, p)
        head_d_q.copy_(_scaled_product(d_scores, k, scale))
        d_k.copy_(_scaled_product(d_scores.mT, head_q, scale))
        d_v.copy_(torch.bmm(p.mT, d))
    if not equal_keys:
        d_q.masked_fill_((cu_seqlens_k.diff() == 0)[:, None, None, None], 0.0)
    return queries.pack(d_q).contiguous(), keys.pack(d_kv).contiguous()


def keeps_probabilities(qkv: Tensor, max_seqlen: int) -> bool:
    """Returns True if sequences are short enough for `EagerAttention`, e.g. FLAVA's 275 with heads of 64."""
    return 0 < max_seqlen <= LONGEST_KEPT * qkv.shape[3] and qkv.numel() > 0


class EagerAttention(torch.autograd.Function):
    """Attends head by head and keeps the probabilities, for sequences short enough that these are small.

    On a CPU it takes about two thirds of the time of PyTorch's flash kernel with a recomputing backward pass.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        qkv: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        equal_lengths: bool,
        causal: bool,
        qkv_bias: Tensor | None,
        gradients: bool,
    ) -> Tensor:
        padding, kept = _Padding(cu_seqlens, max_seqlen, equal_lengths, causal, qkv.shape[0]), []
        padded = padding.pad(qkv)
        blocks = padding.blocks(padded)
        out = qkv.new_empty(*padded.shape[:2], *qkv.shape[2:])
        for q, k, v, head_out in zip(*_by_head(padded), out.unbind(2), strict=True):
            for rows, keys, mask in blocks:
                p = _probabilities(q[:, rows], k[:, keys], mask)
                head_out[:, rows].copy_(torch.bmm(p, v[:, keys]))
                if gradients:
                    kept.append(p)
        ctx.padding = padding
        ctx.save_for_backward(padded, qkv_bias, *kept)
        return padding.pack(out)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        padded, qkv_bias, *probabilities = ctx.saved_tensors
        d_qkv = _gradient(grad, padded, ctx.padding, probabilities)
        d_bias = folded_bias.gradient(d_qkv, qkv_bias) if ctx.needs_input_grad[5] else None
        return d_qkv, *[None] * 4, d_bias, None


def _by_head(padded: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields queries, keys and values (or only the latter two), a view a head: [b s 3 h e] -> h [b s e]."""
    return (part.unbind(2) for part in padded.unbind(2))


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the softmax of the scores: [b n e], [b m e], [b 1 m] or [1 n m] -> [b n m]."""
    return _scores(q, k, mask).softmax(-1)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Returns q K^T / sqrt(e) + mask: [b n e], [b m e], [b 1 m] or [1 n m] -> [b n m]."""
    scale = q.shape[-1] ** -0.5
    return _scaled_product(q, k.mT, scale) if mask is None else torch.baddbmm(mask, q, k.mT, alpha=scale)


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Returns left right * scale: [b n k], [b k m] -> [b n m]."""
    return torch.baddbmm(left.new_empty(*left.shape[:2], right.shape[2]), left, right, beta=0, alpha=scale)


def _mask(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the additive mask: 0, and -inf for padding: [b s] -> [b 1 s]."""
    return torch.zeros(keys.shape, dtype=dtype, device=keys.device).masked_fill_(~keys, float("-inf"))[
        :, None
    ]


def _behind(first: int, last: int, like: Tensor) -> Tensor:
    """Returns the additive causal mask of queries `first` to `last`: 0, and -inf for later keys: [n last]."""
    return torch.full((last - first, last), float("-inf"), dtype=like.dtype, device=like.device).triu(
        first + 1
    )


class _Block(NamedTuple):
    """Queries of every sequence, the keys that they attend to, and their mask: [b 1 m], [1 n m] or none."""

    queries: slice
    keys: slice
    mask: Tensor | None


class _Padding:
    """The padded layout, in which all sequences are as long as the longest; a view if they already are.

    `keys` marks the rows that are keys, [b s], or is None for all. An empty sequence keeps one, so that its
    softmax is defined. With `causal` all rows are keys: no real query attends past its own position.
    """

    def __init__(
        self, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool, causal: bool, total: int
    ) -> None:
        self._longest, self._causal, self._rows, self._slots, self.keys = max_seqlen, causal, None, None, None
        if not equal_lengths:
            self._rows, self._slots = (
                padded_rows(cu_seqlens, max_seqlen),
                padded_slots(cu_seqlens, max_seqlen, total),
            )
        if not equal_lengths and not causal:
            self.keys = (
                torch.arange(max_seqlen, device=cu_seqlens.device) < cu_seqlens.diff().clamp(min=1)[:, None]
            )

    def blocks(self, padded: Tensor, some: slice = slice(None)) -> list[_Block]:
        """Splits some sequences' queries into blocks, the first with all keys; one block without `causal`."""
        if not self._causal:
            return [
                _Block(
                    slice(None),
                    slice(None),
                    None if self.keys is None else _mask(self.keys[some], padded.dtype),
                )
            ]
        edges = [
            (first, min(first + CAUSAL_QUERIES, self._longest))
            for first in range(0, self._longest, CAUSAL_QUERIES)
        ]
        return [
            _Block(slice(first, last), slice(last), _behind(first, last, padded)[None])
            for first, last in reversed(edges)
        ]

    def pad(self, packed: Tensor) -> Tensor:
        """Pads sequences to one length: [T ...] -> [b s ...]. Padding repeats a row of the sequence."""
        if self._rows is None:
            return packed.unflatten(0, (-1, self._longest))
        return packed.index_select(0, self._rows.flatten()).unflatten(0, self._rows.shape)

    def pad_with_zeros(self, packed: Tensor) -> Tensor:
        """Pads with zeros after each sequence."""
        if self._rows is None or self._slots is None:
            return packed.unflatten(0, (-1, self._longest))
        return (
            packed.new_zeros(self._rows.numel(), *packed.shape[1:])
            .index_copy_(0, self._slots, packed)
            .unflatten(0, self._rows.shape)
        )

    def pack(self, padded: Tensor) -> Tensor:
        """Inverts `pad`: [b s ...] -> [T ...]."""
        return padded.flatten(0, 1) if self._slots is None else to_packed(padded, self._slots)
