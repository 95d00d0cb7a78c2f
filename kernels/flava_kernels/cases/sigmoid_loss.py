"""Inputs for the sigmoid loss."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F

from flava_kernels.cases import contrastive
from flava_kernels.op import DTYPES, Case

_WIDE = torch.float32, torch.bfloat16
"""Dtypes with gradients of 1e-9."""


def cases() -> tuple[Case, ...]:
    """Returns rows around a tile, the published scale and bias and others, masked rows, equal samples, losses
    next to nothing, and images and texts on opposite sides of the sphere.
    """
    return (
        _case("1", rows=1, width=8),
        _case("5x3", rows=5, width=3),
        _case("33-all", rows=33, width=16),
        _case("70-masked", rows=70, width=24, matched=0.6),
        _case("129-none", rows=129, width=8, matched=0.0),
        _case("150-masked-wide", rows=150, width=136, matched=0.6, bias=-2.0),
        _case("130-scale-100", rows=130, width=64, scale=100.0, bias=-30.0, matched=0.8),
        _case("40-learned", rows=40, width=40, scale=40.0, bias=-20.0, learned=True, dtypes=_WIDE),
        _case("40-opposite", rows=40, width=8, opposite=True),
        _case("96-twins", rows=96, width=32, scale=20.0, bias=0.5, matched=0.8, twins=True),
    )


def features(
    generator: torch.Generator, *, bias: float, opposite: bool = False, learned: bool = False, **more: Any
) -> dict[str, Any]:
    """Draws what the contrastive loss takes, and the bias.

    Similarities are all negative if `opposite`. If `learned`, they are 1 within pairs and 0 between them.
    """
    drawn = contrastive.features(generator, **more)
    mask = drawn.pop("row_mask")
    if learned:
        drawn["image"] = drawn["text"] = torch.eye(*drawn["image"].shape, dtype=torch.float64)
    if opposite:
        for name, side in (("image", 4.0), ("text", -4.0)):
            drawn[name][:, 0] += side
            drawn[name] = F.normalize(drawn[name], dim=1)
    return {**drawn, "bias": torch.tensor([bias], dtype=torch.float64), "text_mask": mask}


def _case(
    name: str,
    *,
    scale: float = 10.0,
    bias: float = -10.0,
    matched: float = 1.0,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    **more: Any,
) -> Case:
    return Case(
        name,
        functools.partial(features, scale=scale, bias=bias, matched=matched, **more),
        differentiable=("image", "text", "log_scale", "bias"),
        fp32=("log_scale", "bias", "text_mask"),
        dtypes=dtypes,
    )
