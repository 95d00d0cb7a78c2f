"""Inputs for `varlen_cross_attention`: few and small heads, because the interpreter is slow."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Generator

from flava_kernels.cases.attention import HUGE_LOGITS
from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.op import DTYPES, Case, Limits

ROUNDED = {torch.float16: Limits(8e-4, 8e-4), torch.bfloat16: Limits(6e-3, 6e-3)}
"""torch rounds scores and probabilities to half precision; the kernels keep both in fp32."""

FP32 = (torch.float32,)
LARGE = 20.0
"""Makes logits of some hundreds, and a few rows whose two largest are near each other: with larger ones every
probability would be 0 or 1, and the exact gradient of the queries next to nothing.
"""


def cases() -> tuple[Case, ...]:
    """Returns (queries, keys) of sequences on both sides of every tile's edges, and the edge cases.

    These are no rows, sequences without queries, without keys and without both, all head sizes, equal
    numbers of keys, huge logits, which alone may all be negative, and ALBEF's captions with 257 image rows.
    """
    return (
        _case("nothing", ()),
        _case("no-keys-at-all", ((2, 0), (3, 0))),
        _case("no-queries-at-all", ((0, 2), (0, 3))),
        _case("without", ((3, 5), (40, 0), (0, 7), (0, 0), (1, 1))),
        _case("to-32", ((31, 63), (1, 64), (32, 65)), heads=1),
        _case("to-64", ((33, 16), (64, 31), (65, 1)), heads=1),
        _case("long", ((130, 129), (5, 200)), heads=1, reference_limits=ROUNDED),
        _case("captions", ((12, 257), (30, 257)), heads=1, equal_keys=True, reference_limits=ROUNDED),
        _case("equal", ((20, 9), (7, 9)), equal_keys=True),
        _case("head-64", ((7, 80), (40, 3)), heads=1, head_size=64),
        _case("head-128", ((5, 33), (34, 70)), heads=1, head_size=128),
        _case("12-heads", ((3, 9), (9, 2)), heads=12),
        _case("slack", ((4, 6), (6, 0)), slack=40, heads=1),
        _case(
            "large-logits", ((2, 3), (5, 5), (40, 80)), heads=1, size=LARGE, limits=HUGE_LOGITS, dtypes=FP32
        ),
        _case("alone-huge-logits", ((2, 1),) * 6 + ((1, 2),), heads=1, size=60.0, limits=HUGE_LOGITS),
    )


def _case(
    name: str,
    lengths: tuple[tuple[int, int], ...],
    *,
    heads: int = 2,
    head_size: int = 32,
    equal_keys: bool = False,
    slack: int = 0,
    size: float = 1.0,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    limits: dict[torch.dtype, Limits] | None = None,
    reference_limits: dict[torch.dtype, Limits] | None = None,
) -> Case:
    queries, keys = (tuple(pair[place] for pair in lengths) for place in (0, 1))
    layout = {
        "cu_seqlens_q": cu_seqlens_of(queries),
        "cu_seqlens_k": cu_seqlens_of(keys),
        "max_seqlen_q": max(queries, default=0) + slack,
        "max_seqlen_k": max(keys, default=0) + slack,
        "equal_keys": equal_keys,
    }
    draw = functools.partial(_draw, sum(queries), sum(keys), (heads, head_size), size, layout)
    return Case(
        name, draw, ("q", "kv"), dtypes=dtypes, limits=limits or {}, reference_limits=reference_limits or {}
    )


def _draw(
    queries: int, keys: int, head: tuple[int, int], size: float, layout: dict[str, Any], generator: Generator
) -> dict[str, Any]:
    """Draws the arguments; `size` multiplies queries and keys."""
    q = size * torch.randn(queries, *head, generator=generator, dtype=torch.float64)
    kv = torch.randn(keys, 2, *head, generator=generator, dtype=torch.float64)
    kv[:, 0] *= size
    return {"q": q, "kv": kv, **layout}
