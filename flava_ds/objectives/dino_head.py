"""DINO's projection head: a small MLP, and prototypes on the unit sphere."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.layers.fused import LinearGELU
from flava_ds.layers.transformer import at_least_fp32


class Prototypes(nn.Module):
    """Cosine of features with K learned directions: a linear layer with weight normalisation, its gains
    fixed at 1, without bias.

    Shapes:
        features  [k r], L2-normalised
        returns   [k K], fp32 at least
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as torch draws a linear layer's

    def forward(self, features: Tensor) -> Tensor:
        directions = F.normalize(at_least_fp32(self.weight), dim=1).to(self.weight.dtype)
        return at_least_fp32(features.to(self.weight.dtype) @ directions.T)


class DinoHead(nn.Module):
    """Three linear layers with GELU between them, L2 normalisation, and prototypes unless there are none.

    Shapes:
        first  [k d] -> [k K], fp32 at least; without prototypes the normalised bottleneck [k r]
    Source: Caron et al. 2021, appendix C: no batch normalisation, a bottleneck of 256.
    """

    def __init__(self, hidden_size: int, width: int, bottleneck: int, prototypes: int | None) -> None:
        super().__init__()
        self.flops = 2.0 * (
            hidden_size * width + width * width + width * bottleneck + bottleneck * (prototypes or 0)
        )
        """Of one row's forward pass, 2 per multiply-add."""
        self.mlp = nn.Sequential(
            LinearGELU(hidden_size, width), LinearGELU(width, width), nn.Linear(width, bottleneck)
        )
        self.prototypes = nn.Identity() if prototypes is None else Prototypes(bottleneck, prototypes)

    def forward(self, first: Tensor) -> Tensor:
        return self.prototypes(F.normalize(at_least_fp32(self.mlp(first)), dim=-1))
