"""What the engine needs of an optimizer: inactive groups, and updates scaled or skipped on the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flava_ds.config import OptimizerConfig
from flava_ds.errors import ConfigError

TOKENS_AND_POSITIONS = ("position_embeddings", "cls_token", "mask_token")
"""Parts of parameter names that decay_norm_and_bias=False exempts, besides logit_scale and everything else of
one dimension."""


def parameter_groups(
    module: nn.Module,
    kinds: Mapping[str, frozenset[str]],
    config: OptimizerConfig,
    first_steps: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Splits the trainable parameters by (kinds that use them) x (decayed or not) x (the first step that
    moves them, 0 unless `first_steps` says another), in a stable order.

    ZeRO keeps flat tensors per group, so a group that a step does not use can be skipped as a whole. A
    group's `kinds` is a list of plain strings, because it is written into checkpoints that are read without
    unpickling.
    """
    groups: dict[tuple[tuple[str, ...], bool, int], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (
            tuple(sorted(str(kind) for kind in kinds[name])),
            is_decayed(name, parameter, config),
            (first_steps or {}).get(name, 0),
        )
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": groups[key],
            "kinds": list(key[0]),
            "active": True,
            "first_step": key[2],
            "decayed": key[1],
            "weight_decay": config.weight_decay if key[1] else 0.0,
            "lr": config.lr,
        }
        for key in sorted(groups)
    ]


def is_decayed(name: str, parameter: nn.Parameter, config: OptimizerConfig) -> bool:
    """Tells whether weight decay shrinks a parameter."""
    if config.decay_norm_and_bias:
        return True
    if any(part in name for part in TOKENS_AND_POSITIONS):
        return config.decay_tokens_and_positions
    return parameter.ndim >= 2 and "logit_scale" not in name


def activate(optimizer: torch.optim.Optimizer, kind: str, idle: str, step: int = 0) -> None:
    """Activates the groups that update `step`, of `kind`, moves: its users' ('frozen'), or all ('zeros'),
    except those whose first step is still to come."""
    for group in optimizer.param_groups:
        used = idle == "zeros" or str(kind) in group["kinds"]
        group["active"] = used and step >= group.get("first_step", 0)


@dataclass(frozen=True)
class Place:
    """Where this rank has elements of a parameter in one of the optimizer's flattened tensors."""

    member: int
    """The parameter's number among those that the tensor divides among the ranks."""
    offset: int
    numel: int


@dataclass(frozen=True)
class Places:
    """What one of the optimizer's tensors holds."""

    members: int
    """Parameters that it divides among the ranks."""
    own: tuple[Place, ...]
    """This rank's parts of them; a rank may have none."""


class Gated(torch.optim.Optimizer):
    """An optimizer as the engine needs it; named before a base class that has a step() of its own.

    The engine sets `found_inf` (1.0 skips the update) and `grad_scale` (divides the gradients, or None)
    before `step`; both are scalars on the device. A step moves the active groups only: an inactive one keeps
    weights, moments and step count. Checkpoints keep `moments`, each shaped like its parameter, and the
    update count.
    """

    moments: ClassVar[tuple[str, ...]]
    """What the optimizer keeps for each element of a parameter: keys of `state`."""
    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    def hold(self, places: Mapping[int, Places], add_up: Callable[[Tensor], Any] | None) -> None:
        """Is told, once, which parts of parameters each of its tensors has, by the tensor's id.

        `add_up` adds a tensor of all ranks in place; None if every rank has whole parameters. For optimizers
        that treat parameters as wholes; the others need not know.
        """

    def active_groups(self) -> list[dict[str, Any]]:
        """Returns the groups that this update moves."""
        return [group for group in self.param_groups if group.get("active", True)]

    def moving_groups(self) -> list[dict[str, Any]]:
        """Returns the active groups of which a parameter has a gradient."""
        return [group for group in self.active_groups() if any(p.grad is not None for p in group["params"])]

    def create_state(self, parameter: Tensor) -> dict[str, Any]:
        """Returns a parameter's state; a new one has zero moments and no updates."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            moments = {key: torch.zeros_like(parameter) for key in self.moments}
            state.update(step=self._no_updates(parameter), **moments)
        return state

    def create_states(self) -> None:
        """Creates the state of every parameter with a gradient, inactive groups included.

        This makes a checkpoint complete at any step.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.create_state(parameter)

    def updates_of(self, group: dict[str, Any], parameter: Tensor) -> int:
        """Returns the number of updates of a parameter of `group`."""
        return int(self.create_state(parameter)["step"])

    def set_updates(self, group: dict[str, Any], parameter: Tensor, count: int) -> None:
        """Sets the number of updates of a parameter of `group`."""
        state = self.create_state(parameter)
        state["step"] = self._no_updates(parameter) + count

    def _no_updates(self, parameter: Tensor) -> Any:
        """Returns a zero count on the device, where a skipped update leaves it without telling the host."""
        return torch.zeros((), dtype=torch.float32, device=parameter.device)


class Uncompiled(torch.optim.Optimizer):
    """For optimizers that have these methods from torch, which keeps its compiler away from them: to do so it
    loads that, in one to two seconds of a rank's start. Named first among the base classes.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class TensorByTensor(Uncompiled, Gated):
    """Gated, for optimizers that move each tensor by itself."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures
        """Updates the active groups; if `found_inf` is 1, the device leaves everything unchanged."""
        self.create_states()
        for group in self.active_groups():
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group)

    def move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Updates one tensor."""
        raise NotImplementedError(f"{type(self).__name__} does not implement move")

    def taken(self, parameter: Tensor, average: Tensor) -> tuple[Tensor, Any]:
        """Returns a parameter's gradient without its scale, and what share of the update is taken, 1 or 0.

        A skipped update's gradient is the average of those before, since NaN would survive a factor of 0.
        """
        gradient = parameter.grad
        assert gradient is not None  # or step() would have passed it over
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale.to(gradient.device)
        if self.found_inf is None:
            return gradient, 1.0
        # a scalar, so it does not widen the other operands
        taken = 1.0 - self.found_inf.to(gradient.device, torch.float64)
        return torch.where(taken > 0, gradient, average), taken


def check_optimizer(built: Any) -> Gated:
    """Returns what an optimizer's config has built, once the engine can use it.

    Raises: ConfigError on all ranks for another optimizer than a Gated, or one that lacks a part.
    """
    kind = type(built).__name__
    if not isinstance(built, Gated):
        raise ConfigError(
            f"optimizer: its config built an object of {kind}, which cannot skip an update on the device; "
            "build a Gated of flava_ds/optimizers/base.py, such as a TensorByTensor with moments and move() "
            "of its own (docs/extending.md)"
        ).everywhere()
    moves = not isinstance(built, TensorByTensor) or type(built).move is not TensorByTensor.move
    if not moves or not hasattr(built, "moments"):
        lacking = "`moments`, which names what it keeps" if moves else "move(), which updates one tensor"
        raise ConfigError(f"optimizer: {kind} lacks {lacking}; define it (docs/extending.md)").everywhere()
    return built
