"""Weights of objectives that change during training: the base of what decides them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flava_ds.objectives.base import Loss
from flava_ds.objectives.state import TrainingState

if TYPE_CHECKING:
    from flava_ds.training.engine import Engine

LOSSES = "balance/losses"
"""Key of a step's statistics: each objective's sum of terms, in the balance's order."""


class Balance(TrainingState):
    """Keeps a weight for every objective. What it learns from are means over all terms of all ranks, so the
    weights are equal on all ranks and do not depend on their number.
    """

    def __init__(self, configured: Mapping[str, float]) -> None:
        """`configured` holds the weights to begin with, by objective."""
        self.names = tuple(configured)
        self.configured = torch.tensor([*configured.values()])

    def weights(self) -> Tensor:
        """Returns the weights of now, in the order of `names`: [n] fp32."""
        raise NotImplementedError(f"{type(self).__name__} does not implement weights")

    def follow(self, means: Tensor, present: Tensor) -> None:
        """Changes the weights after an update.

        Shapes:
            means    [n]  mean losses of the step
            present  [n]  bool, whether an objective had terms in it; the others' means are 0
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement follow")

    def begin(self, name: str, engine: Engine) -> None:
        self.configured = self.configured.to(engine.world.device)
        for key, tensor in self.tensors().items():
            setattr(self, key, tensor.to(engine.world.device))

    def statistics(self, losses: Mapping[str, Loss]) -> dict[str, Tensor]:
        """Returns what `after_update` needs of one micro-batch."""
        zero = torch.zeros((), device=self.configured.device)
        sums = [losses[name].sum.detach().float() if name in losses else zero for name in self.names]
        return {LOSSES: torch.stack(sums)}

    def report(self) -> dict[str, Tensor]:
        return {f"weight/{name}": weight for name, weight in zip(self.names, self.weights(), strict=True)}

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        zero = torch.zeros((), device=self.configured.device)
        counts = torch.stack([statistics.get(f"{name}/count", zero) for name in self.names])
        self.follow(statistics[LOSSES] / counts.clamp(min=1), counts > 0)
