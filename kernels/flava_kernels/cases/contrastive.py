"""Inputs for the contrastive loss."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F

from flava_kernels.op import Case, Limits

HUGE_LOGITS = {
    torch.float32: Limits(4e-7, 4e-6, 1e-5),
    torch.float16: Limits(4e-7, 6e-4, 1e-5),
    torch.bfloat16: Limits(4e-7, 5e-3, 1e-5),
}
"""At scale 100 a logit's fp32 rounding, 4e-6, shows in the gradients.

The scale's gradient is affected most, because its terms cancel.
"""

ALONE = {torch.float32: Limits(4e-7, 1e-5, 1e-5)}
"""A single row's gradient is 0, so only rounding remains.

That is half an ulp of a base-2 logit, 1e-6 at scale 14.3, times the scale.
"""


def cases() -> tuple[Case, ...]:
    """Returns rows around a tile, scales 1 and 100, masked rows, equal samples, odd widths."""
    return (
        _case("1", rows=1, width=8, limits=ALONE),
        _case("5x3", rows=5, width=3),
        _case("33-all", rows=33, width=16),
        _case("70-masked", rows=70, width=24, matched=0.6),
        _case("129-none", rows=129, width=8, matched=0.0),
        _case("150-masked-wide", rows=150, width=136, matched=0.6),
        _case("300-scale-1", rows=300, width=40, scale=1.0, matched=0.8),
        _case("130-scale-100", rows=130, width=64, scale=100.0, matched=0.8, limits=HUGE_LOGITS),
        _case("96-twins", rows=96, width=32, scale=20.0, matched=0.8, twins=True),
    )


def features(
    generator: torch.Generator, *, rows: int, width: int, scale: float, matched: float, twins: bool = False
) -> dict[str, Any]:
    """Draws normalised images, similar texts, and the mask of matches; twins repeat the first half.

    Twins are multiples of 1/64: their fp32 products are exact, so equal columns stay equal in whatever order
    a processor's matrix product adds.
    """
    image = F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)
    text = F.normalize(
        image + 3.0 * torch.randn(rows, width, generator=generator, dtype=torch.float64) / math.sqrt(width),
        dim=1,
    )
    if twins:
        image, text = (image * 64).round() / 64, (text * 64).round() / 64
        image[rows // 2 :], text[rows // 2 :] = (
            image[: rows - rows // 2].clone(),
            text[: rows - rows // 2].clone(),
        )
    row_mask = (torch.rand(rows, generator=generator) < matched).double()
    return {
        "image": image,
        "text": text,
        "log_scale": torch.tensor([math.log(scale)], dtype=torch.float64),
        "row_mask": row_mask,
    }


def _case(
    name: str,
    *,
    scale: float = 14.3,
    matched: float = 1.0,
    twins: bool = False,
    limits: dict[torch.dtype, Limits] | None = None,
    **sizes: Any,
) -> Case:
    draw = functools.partial(features, scale=scale, matched=matched, twins=twins, **sizes)
    return Case(
        name,
        draw,
        differentiable=("image", "text", "log_scale"),
        fp32=("log_scale", "row_mask"),
        limits=limits or {},
    )
