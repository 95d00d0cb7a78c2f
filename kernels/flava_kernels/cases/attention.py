"""Inputs for `varlen_attention`: mostly few and small heads, because the interpreter is slow."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Generator

from flava_kernels.cases.packing import cu_seqlens_of
from flava_kernels.op import Case, Limits

HUGE_LOGITS = {
    torch.float32: Limits(1e-5, 2e-3),
    torch.float16: Limits(5e-4, 5e-3),
    torch.bfloat16: Limits(4e-3, 6e-3),
}
"""Logits near 10^4 have an ulp of 10^-3 in fp32; so do the exponents that the backward pass recomputes."""

ROUNDED = {torch.bfloat16: Limits(5e-3, 6e-3)}
"""torch rounds scores and probabilities to half precision; the kernels keep both in fp32."""


def cases() -> tuple[Case, ...]:
    """Returns every bucket of lengths with its ends, and the edge cases.

    These are no rows, empty sequences, all head sizes, equal lengths, and huge logits, which alone may all be
    negative. Causal attention has its own: the edges of its tiles, and CLIP's text encoder with 8 heads of 64
    and 77 tokens. The last ones have qkv's bias.
    """
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
        _case("causal-nothing", (), causal=True),
        _case("causal-to-16", (0, 1, 2, 15, 16), causal=True),
        _case("causal-to-32", (17, 0, 31, 32), heads=1, causal=True),
        _case("causal-to-128", (33, 64, 1, 65, 127, 128), heads=1, causal=True),
        _case("causal-197", (197, 1, 0, 63), heads=1, causal=True),
        _case("causal-equal", (20, 20), equal_lengths=True, causal=True),
        _case("causal-head-128", (5, 70), heads=1, head_size=128, causal=True),
        _case("causal-clip-text", (77, 12), heads=8, head_size=64, causal=True),
        _case("causal-slack", (4, 70), slack=60, heads=1, causal=True),
        _case("causal-huge-logits", (2, 5, 70), heads=1, size=60.0, limits=HUGE_LOGITS, causal=True),
        _case("bias-to-16", (2, 0, 15, 16), head_size=64, bias=True),
        _case("bias-nothing", (), bias=True),
        _case("bias-empty", (0, 0), bias=True),
        _case("bias-to-32", (17, 0, 31, 32), heads=1, head_size=64, bias=True),
        _case("bias-head-32", (3, 0, 40), bias=True),
        _case("bias-head-64", (7, 40, 0, 130), heads=2, head_size=64, bias=True),
        _case("bias-head-128", (5, 70), heads=1, head_size=128, bias=True),
        _case("bias-equal", (20, 20), equal_lengths=True, bias=True),
        _case("bias-many", (3,) * 70, heads=1, head_size=64, bias=True),
        _case("causal-bias", (33, 0, 64, 1, 140), heads=1, head_size=64, causal=True, bias=True),
    )


def _case(
    name: str,
    lengths: tuple[int, ...],
    *,
    heads: int = 2,
    head_size: int = 32,
    equal_lengths: bool = False,
    causal: bool = False,
    slack: int = 0,
    size: float = 1.0,
    bias: bool = False,
    limits: dict[torch.dtype, Limits] | None = None,
    reference_limits: dict[torch.dtype, Limits] | None = None,
) -> Case:
    layout = {
        "cu_seqlens": cu_seqlens_of(lengths),
        "max_seqlen": max(lengths, default=0) + slack,
        "equal_lengths": equal_lengths,
        "causal": causal,
    }
    draw = functools.partial(_draw, (sum(lengths), 3, heads, head_size), size, layout, bias)
    return Case(
        name,
        draw,
        ("qkv", "qkv_bias") if bias else ("qkv",),
        limits=limits or {},
        reference_limits=reference_limits or {},
    )


def _draw(
    shape: tuple[int, ...], size: float, layout: dict[str, Any], bias: bool, generator: Generator
) -> dict[str, Any]:
    """Draws the arguments; `size` multiplies queries and keys."""
    qkv = torch.randn(shape, generator=generator, dtype=torch.float64)
    qkv[:, :2] *= size
    if bias:
        layout = {**layout, "qkv_bias": torch.randn(math.prod(shape[1:]), generator=generator).double()}
    return {"qkv": qkv, **layout}
