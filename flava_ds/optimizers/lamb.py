"""LAMB: Adam's step of each parameter, scaled to the parameter's own norm, for very large batches.

Source: You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", algorithm
2, with phi(z) = z. As in its authors' code, parameters that do not decay keep a ratio of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.optimizers import Beta, OptimizerConfig
from flava_ds.optimizers.base import Place, Places, TensorByTensor


@dataclass(frozen=True, kw_only=True)
class LambConfig(OptimizerConfig, type="lamb"):
    """Adam with decoupled weight decay, whose update of a parameter is as long as lr times its weights are.

    Set decay_norm_and_bias to False, as its authors do, or norms and biases are scaled too.
    """

    lr: Annotated[float, AtLeast(0), AtMost(10)] = 2e-3
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the averages of gradients and of their squares."""
    eps: Annotated[float, AtLeast(0), AtMost(1)] = 1e-6
    """Added to the square root of the second average."""
    weight_decay: Annotated[float, AtLeast(0), AtMost(100)] = 0.01

    def build(self, groups: list[dict[str, Any]]) -> Lamb:
        """Builds the optimizer."""
        return Lamb(groups, self)


class Lamb(TensorByTensor):
    """u = m^ / (sqrt(v^) + eps) + decay w, then w <- w - lr |w| / |u| u, by parameter.

    ZeRO hands over flat tensors with parts of many parameters. The engine says which (`hold`), and the
    squared norms are added up over ranks, in one all-reduce for each of these tensors.
    """

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(self, groups: list[dict[str, Any]], config: LambConfig) -> None:
        super().__init__(
            groups,
            {
                "lr": config.lr,
                "betas": config.betas,
                "eps": config.eps,
                "weight_decay": config.weight_decay,
            },
        )
        self._places: Mapping[int, Places] = {}
        self._add_up: Callable[[Tensor], Any] | None = None

    def hold(self, places: Mapping[int, Places], add_up: Callable[[Tensor], Any] | None) -> None:
        self._places, self._add_up = places, add_up

    def move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Updates one tensor. A skipped update has a learning rate of 0 and a finite gradient."""
        state = self.create_state(parameter)
        average, squares, (first, second) = state["exp_avg"], state["exp_avg_sq"], group["betas"]
        gradient, taken = self.taken(parameter, average)
        average.add_((gradient - average) * ((1.0 - first) * taken))
        squares.add_((gradient.square() - squares) * ((1.0 - second) * taken))
        state["step"] += taken
        updates = state["step"].double().clamp(min=1.0)  # a skipped first update divides by something
        corrected = (squares / (1.0 - second**updates)).sqrt_().add_(group["eps"])
        update = (average / (1.0 - first**updates)).div_(corrected)
        update.add_(parameter, alpha=group["weight_decay"])
        flat, update = parameter.view(-1), update.view(-1)
        for place, ratio in self._ratios(parameter, flat, update, group):
            part = slice(place.offset, place.offset + place.numel)
            flat[part].sub_(update[part] * (group["lr"] * taken * ratio))

    def _ratios(
        self, parameter: Tensor, flat: Tensor, update: Tensor, group: dict[str, Any]
    ) -> list[tuple[Place, Any]]:
        """Returns the parts of parameters in a tensor, each with its parameter's ratio of norms."""
        # Outside of an engine a tensor is a parameter; within one, an unknown tensor is an error.
        alone = Places(1, (Place(0, 0, flat.numel()),))
        held = self._places[id(parameter)] if self._places else alone
        if not group.get("decayed", True):
            return [(place, 1.0) for place in held.own]
        precise = torch.promote_types(flat.dtype, torch.float32)
        norms = torch.zeros(held.members, 2, dtype=precise, device=flat.device)
        for place in held.own:
            part = slice(place.offset, place.offset + place.numel)
            norms[place.member, 0] += flat[part].square().sum()
            norms[place.member, 1] += update[part].square().sum()
        if self._add_up is not None:
            self._add_up(norms)
        weights, updates = norms.sqrt().unbind(1)
        ratios = torch.where((weights > 0) & (updates > 0), weights / updates, torch.ones_like(weights))
        return [(place, ratios[place.member]) for place in held.own]
