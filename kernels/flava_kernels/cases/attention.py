"""Packed queries, keys and values for `varlen_attention`: few heads and small ones mostly, because the interpreter is slow."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Generator

from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.op import Case, Limits

HUGE_LOGITS = {torch.float32: Limits(1e-5, 2e-3), torch.float16: Limits(5e-4, 5e-3), torch.bfloat16: Limits(4e-3, 6e-3)}
"""Logits near 10^4 have a last place of 10^-3 in fp32, and with it the exponent of a probability that the backward pass recomputes."""

ROUNDED = {torch.bfloat16: Limits(5e-3, 6e-3)}
"""torch's products and its softmax round scores and probabilities to half precision; the kernels keep both in fp32."""


def cases() -> tuple[Case, ...]:
    """Every bucket of lengths with its ends, no rows, empty sequences, all head sizes, equal lengths, huge logits, which alone may all be negative."""
    return (
        _case("nothing", ()),
        _case("empty", (0, 0)),
        _case("to-16", (0, 1, 2, 15, 16)),
        _case("to-32", (17, 0, 31, 32), heads=1),
        _case("to-128", (33, 64, 1, 77), heads=1),
        _case("127", (127, 128), heads=1, reference_limits=ROUNDED),
        _case("197", (197,), heads=1),
        _case("275", (275, 0, 3), heads=1),
        _case("equal", (20, 20), equal_lengths=True),
        _case("head-64", (7, 40), heads=1, head_size=64),
        _case("head-128", (5, 33), heads=1, head_size=128),
        _case("12-heads", (3, 9), heads=12),
        _case("slack", (4, 6), slack=40, heads=1),
        _case("huge-logits", (2, 5, 40), heads=1, size=60.0, limits=HUGE_LOGITS),
        _case("alone-huge-logits", (1, 1, 1, 1, 1, 1, 2, 3), heads=1, size=60.0, limits=HUGE_LOGITS),
    )


def _case(
    name: str,
    lengths: tuple[int, ...],
    *,
    heads: int = 2,
    head_size: int = 32,
    equal_lengths: bool = False,
    slack: int = 0,
    size: float = 1.0,
    limits: dict[torch.dtype, Limits] | None = None,
    reference_limits: dict[torch.dtype, Limits] | None = None,
) -> Case:
    draw = functools.partial(_draw, lengths, heads, head_size, equal_lengths, slack, size)
    return Case(name, draw, ("qkv",), limits=limits or {}, reference_limits=reference_limits or {})


def _draw(lengths: tuple[int, ...], heads: int, head_size: int, equal_lengths: bool, slack: int, size: float, generator: Generator) -> dict[str, Any]:
    """`size` multiplies queries and keys, `slack` is added to the longest length."""
    qkv = torch.randn(sum(lengths), 3, heads, head_size, generator=generator, dtype=torch.float64)
    qkv[:, :2] *= size
    return {"qkv": qkv, "cu_seqlens": cu_seqlens_of(lengths), "max_seqlen": max(lengths, default=0) + slack, "equal_lengths": equal_lengths}
