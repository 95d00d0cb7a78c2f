"""Lion: the sign of an interpolated momentum, one moment instead of two.

Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", program 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.optimizers import Beta, OptimizerConfig
from flava_ds.optimizers.base import TensorByTensor


@dataclass(frozen=True, kw_only=True)
class LionConfig(OptimizerConfig, type="lion"):
    """Moves every element by the learning rate, whatever its gradient.

    Its authors divide AdamW's learning rate, and multiply its weight_decay, by 3 to 10.
    """

    lr: Annotated[float, AtLeast(0), AtMost(10)] = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Weights of the old momentum in the update's sign, and in the new momentum."""
    weight_decay: Annotated[float, AtLeast(0), AtMost(100)] = 1.0

    def build(self, groups: list[dict[str, Any]]) -> Lion:
        """Builds the optimizer."""
        return Lion(groups, self)


class Lion(TensorByTensor):
    """w <- (1 - lr decay) w - lr sign(beta_1 m + (1 - beta_1) g), then m <- beta_2 m + (1 - beta_2) g."""

    moments = ("exp_avg",)

    def __init__(self, groups: list[dict[str, Any]], config: LionConfig) -> None:
        super().__init__(
            groups, {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
        )

    def move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Updates one parameter. A skipped update has a learning rate of 0 and a finite gradient."""
        state, lr = self.create_state(parameter), group["lr"]
        momentum, (inner, outer) = state["exp_avg"], group["betas"]
        gradient, taken = self.taken(parameter, momentum)
        parameter.mul_(1.0 - lr * group["weight_decay"] * taken)
        parameter.sub_(torch.sign(momentum * inner + gradient * (1.0 - inner)) * (lr * taken))
        momentum.add_((gradient - momentum) * (1.0 - outer))
        state["step"] += taken
