"""Terms that keep the features of a step's images apart, over all ranks: KoLeo and the coding rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.base import of_all_ranks

SMALLEST = 1e-8
"""Added to a distance, whose logarithm is finite then."""


def koleo(features: Tensor) -> Tensor:
    """Sums minus the logarithm of the distance from each of this rank's features to the nearest other one.

    Features are L2-normalised first; gradients reach both ends of a distance, on any rank. DINOv2 looks for
    the nearest on one GPU.

    Shapes:
        features  [b d]
    Source: Sablayrolles et al. 2019, "Spreading vectors for similarity search", equation 2; DINOv2.
    """
    own = F.normalize(at_least_fp32(features), dim=-1)
    every, first = of_all_ranks(own)
    if len(every) < 2:
        return own.sum() * 0.0  # alone in its step, with a graph
    with torch.no_grad():
        near = own @ every.T
        rows = torch.arange(len(own), device=own.device)
        near[rows, rows + first] = -torch.inf
        nearest = near.argmax(1)
    distances = (own - every[nearest]).square().sum(1).clamp(min=SMALLEST**2).sqrt()
    return -(distances + SMALLEST).log().sum()


def coding_rate(features: Tensor, epsilon: float) -> Tensor:
    """Returns half the log determinant of 1 + (d / epsilon) times the second moments of all ranks' features.

    It is 0 if all are zero, and largest if they fill all directions equally.

    Shapes:
        features  [b d], L2-normalised
    Source: Wu et al. 2025, "Simplifying DINO via Coding Rate Regularization", equation 9.
    """
    every, _ = of_all_ranks(features)
    width = every.shape[1]
    moments = every.T @ every * (width / (len(every) * epsilon))
    identity = torch.eye(width, device=every.device, dtype=every.dtype)
    return torch.linalg.cholesky(identity + moments).diagonal().log().sum()
