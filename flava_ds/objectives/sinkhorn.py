"""Sinkhorn's iteration: probabilities of which every prototype gets an equal share of a step's samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from flava_ds.objectives.base import world_size


def balanced(scores: Sequence[Tensor], iterations: int = 3) -> list[Tensor]:
    """Turns scores into probabilities over the prototypes, after dividing, in turns, each prototype by its
    sum over all samples and each sample by its sum over the prototypes.

    All samples of all ranks and micro-batches count as one matrix, which no rank holds: a turn exchanges two
    numbers for each prototype.

    Shapes:
        scores   parts of [k K] fp32, e.g. the micro-batches of this rank; divided by a temperature already
        returns  the same parts: each row sums to 1
    Source: Cuturi 2013, algorithm 1, with equal margins; Caron et al. 2020 (SwAV), section 3.1: three turns.
    """
    logs = torch.cat([part.flatten(0, -2) for part in scores])
    for _ in range(iterations):
        logs = (logs - _log_sum_over_samples(logs)).log_softmax(-1)
    sizes = [part.shape[:-1].numel() for part in scores]
    return [own.view_as(part) for own, part in zip(logs.exp().split(sizes), scores, strict=True)]


def _log_sum_over_samples(logs: Tensor) -> Tensor:
    """Returns the logarithm of each prototype's sum over the rows of all ranks: [k K] -> [K]."""
    own = logs.logsumexp(0)
    if world_size() == 1:
        return own
    largest = own.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    total = (own - largest).exp()
    dist.all_reduce(total)
    return largest + total.log()
