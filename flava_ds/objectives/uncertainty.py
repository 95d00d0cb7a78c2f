"""Weights by uncertainty: each objective's loss is divided by a learned variance, whose logarithm is a
penalty.

Source: Kendall, Gal, Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
and Semantics", equation 10: the form for classification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flava_ds.config.balance import BalanceConfig
from flava_ds.objectives.balance import Balance


@dataclass(frozen=True, kw_only=True)
class UncertaintyConfig(BalanceConfig, type="uncertainty"):
    """Weighs each objective by exp(-s), where s follows the gradient of exp(-s) * loss + s / 2.

    So every weighted loss tends to a half, times the objective's configured weight.
    """

    def build(self, task: Any) -> Uncertainty:
        return Uncertainty({name: own.weight for name, own in task.objectives.items()}, self.lr)


class Uncertainty(Balance):
    """The logarithm s of each objective's variance, by plain gradient descent without decay.

    They are no parameters, because an optimizer that moves weights by 1e-4 a step would need ten thousand
    steps for what takes a few hundred here.
    """

    def __init__(self, configured: dict[str, float], lr: float) -> None:
        super().__init__(configured)
        self.lr, self.log_variances = lr, torch.zeros(len(configured))

    def tensors(self) -> dict[str, Tensor]:
        return {"log_variances": self.log_variances}

    def weights(self) -> Tensor:
        return self.configured * (-self.log_variances).exp()

    def follow(self, means: Tensor, present: Tensor) -> None:
        gradients = 0.5 - (-self.log_variances).exp() * means
        self.log_variances -= self.lr * torch.where(present, gradients, torch.zeros_like(gradients))
