"""GradNorm: weights under which all objectives of a step pull the layers that they share with equal force,
those that learn slowly somewhat harder.

Source: Chen et al. 2018, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
Networks", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.config.balance import BalanceConfig
from flava_ds.config.bounds import Above, AtLeast, AtMost
from flava_ds.data.order import uniforms
from flava_ds.errors import ConfigError
from flava_ds.objectives.balance import Balance

if TYPE_CHECKING:
    from flava_ds.training.engine import Engine

_STREAM = 16
LEAST = 1e-3
"""A weight's smallest value, as a share of the configured one."""


@dataclass(frozen=True, kw_only=True)
class GradNormConfig(BalanceConfig, type="gradnorm"):
    """Balances objectives of the same kind of step; one that is alone in its kind keeps its weight.

    Needs ZeRO 0, 1 or 2.
    """

    lr: Annotated[float, Above(0), AtMost(1)] = 0.025
    """Size of its steps; constant, and independent of optimizer.lr."""
    asymmetry: Annotated[float, AtLeast(0), AtMost(10)] = 1.5
    """How much harder objectives pull whose loss has fallen less: the published alpha; 0 asks for equal
    norms."""
    every_steps: Annotated[int, AtLeast(1), AtMost(10**9)] = 10
    """Measures gradients in one step of this many, chosen by the step's number. A measurement takes one more
    forward pass and the last layers' part of a backward pass for each objective."""

    def build(self, task: Any) -> GradNorm:
        """Builds it. Raises: ConfigError unless some kind of step has objectives that share a layer."""
        return GradNorm(
            {name: own.weight for name, own in task.objectives.items()}, self, shared_layers(task)
        )


def shared_layers(task: Any) -> dict[str, tuple[str, ...]]:
    """Returns, for each kind of step with several objectives, the names of the layers to measure: the last
    matrix of each encoder among the parameters that all of them reach.

    Raises: ConfigError if there are none.
    """
    names = {parameter: name for name, parameter in task.model.named_parameters()}
    found = {}
    for kind in task.kinds:
        active = task.active(kind)
        if len(active) < 2:
            continue
        shared = set.intersection(*(own.model_parameters(task.model) for own in active.values()))
        matrices = [
            [name for own in encoder if (name := names[own]) in shared and own.ndim > 1]
            for encoder in task.encoders().values()
        ]
        found[kind] = tuple(f"model.{own[-1]}" for own in matrices if own)
        if not found[kind]:
            raise ConfigError(
                f"balance gradnorm: {', '.join(active)} of {kind} steps share no trained layer; use "
                "--balance uncertainty"
            ).everywhere()
    if not found:
        raise ConfigError(
            "balance gradnorm compares objectives of the same step, and no kind of step has two; use "
            "--balance uncertainty"
        ).everywhere()
    return found


class GradNorm(Balance):
    """The weights, and each objective's first loss, from which its rate of learning follows; 0 before that.

    `norms` is set by a measurement and read in the same step: the gradient norm of each objective's
    unweighted mean loss on the shared layers [n], 0 for those without one. One that is not finite, as of a
    loss scale that fp16 has yet to lower, leaves its objective's weight.
    """

    def __init__(
        self, configured: Mapping[str, float], config: GradNormConfig, layers: Mapping[str, Sequence[str]]
    ) -> None:
        super().__init__(configured)
        self.config, self.layers = config, dict(layers)
        self.learned = self.configured.clone()
        self.first_losses = torch.zeros_like(self.learned)
        self.norms: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        return {"learned": self.learned, "first_losses": self.first_losses}

    def weights(self) -> Tensor:
        return self.learned

    def begin(self, name: str, engine: Engine) -> None:
        if engine.stage == 3:
            raise ConfigError(
                "balance gradnorm: ZeRO-3 keeps no full gradients; use ZeRO 0, 1 or 2, or --balance "
                "uncertainty"
            ).everywhere()
        super().begin(name, engine)

    def measured_layers(self, step: int, kind: str) -> tuple[str, ...]:
        """Returns the parameters on which this step is to be measured; none in most steps."""
        [[drawn]] = uniforms(np.array([step], dtype=np.uint64), 1, stream=_STREAM)
        return tuple(self.layers.get(kind, ())) if drawn < 1 / self.config.every_steps else ()

    def follow(self, means: Tensor, present: Tensor) -> None:
        self.first_losses = torch.where(self.first_losses == 0, means, self.first_losses)
        norms, self.norms = self.norms, None
        if norms is None:
            return
        balanced = present & (norms > 0) & norms.isfinite() & (self.first_losses > 0)
        pulls = self.learned * norms
        mean_pull = _mean(pulls, balanced)
        left = torch.where(balanced, means / self.first_losses, torch.ones_like(means))
        rates = left / _mean(left, balanced)
        targets = mean_pull * rates**self.config.asymmetry
        # of the published sum |pull - target|, in units of the mean pull; the targets are constants
        gradients = (pulls - targets).sign() * norms / mean_pull
        moved = self.learned - self.config.lr * gradients
        moved = torch.maximum(moved, LEAST * self.configured)
        moved = moved * _mean(self.learned, balanced) / _mean(moved, balanced)
        self.learned = torch.where(balanced, moved, self.learned)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Returns the mean of the chosen values; of none, 0."""
    return torch.where(chosen, values, torch.zeros_like(values)).sum() / chosen.sum().clamp(min=1)
