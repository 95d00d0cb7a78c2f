"""AdamW that can leave parameter groups alone and skip an update on the device, and the groups it works on."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flava_ds.config import OptimizerConfig
from flava_ds.errors import ConfigError

NO_DECAY_NAMES = ("position_embeddings", "cls_token", "mask_token", "logit_scale")
"""Parts of parameter names that decay_norm_and_bias=False exempts, besides everything of one dimension."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What every optimizer here keeps of the shape of a parameter."""


def parameter_groups(module: nn.Module, kinds: Mapping[str, frozenset[str]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Splits the trainable parameters by (set of kinds that use them) x (decayed or not), in a stable order.

    ZeRO keeps flat tensors per group, so a group that a step does not use can be left alone as a whole. `kinds` of a group is a list of
    plain strings, since it is written into checkpoints that are read without unpickling.
    """
    groups: dict[tuple[tuple[str, ...], bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = not config.decay_norm_and_bias and (parameter.ndim < 2 or any(part in name for part in NO_DECAY_NAMES))
        key = (tuple(sorted(str(kind) for kind in kinds[name])), not exempt)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": groups[key], "kinds": list(key[0]), "active": True, "weight_decay": config.weight_decay if key[1] else 0.0, "lr": config.lr}
        for key in sorted(groups)
    ]


def activate(optimizer: torch.optim.Optimizer, kind: str, idle: str) -> None:
    """Marks the groups that an update of `kind` moves: those that use it ('frozen') or all of them ('zeros')."""
    for group in optimizer.param_groups:
        group["active"] = idle == "zeros" or str(kind) in group["kinds"]


class Gated:
    """What the trainer needs of an optimizer beside `step`: groups that sleep, and an update that can be scaled or skipped.

    A class that mixes this in sets `found_inf` (1.0 skips the update) and `grad_scale` (divides the gradients, or None) before `step`;
    both are scalars on the device.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None
    param_groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]
    averages: tuple[str, ...] = ()
    """What is kept beside the moments, of the same shape: running averages of the weights."""

    @property
    def kept(self) -> tuple[str, ...]:
        """All that the state of a parameter has of its shape."""
        return (*MOMENTS, *self.averages)

    def active_groups(self) -> list[dict[str, Any]]:
        """Returns the groups that this update moves."""
        return [group for group in self.param_groups if group.get("active", True)]

    def create_state(self, parameter: Tensor) -> dict[str, Any]:
        """Gives a parameter zero moments, zero averages and no updates where it has none yet; returns the state."""
        state = self.state[parameter]
        if not state:
            state["step"] = self._no_updates(parameter)
        for key in self.kept:
            if key not in state:
                state[key] = torch.zeros_like(parameter)
        return state

    def updates_of(self, group: dict[str, Any], parameter: Tensor) -> int:
        """Returns how many updates a parameter of `group` has had."""
        return int(self.create_state(parameter)["step"])

    def set_updates(self, group: dict[str, Any], parameter: Tensor, count: int) -> None:
        """Sets how many updates a parameter of `group` has had."""
        state = self.create_state(parameter)
        state["step"] = self._no_updates(parameter) + count

    def _no_updates(self, parameter: Tensor) -> Any:
        """A count of zero, as the optimizer keeps it."""
        return 0


class GatedAdamW(Gated, torch.optim.AdamW):
    """torch's fused AdamW over the active groups only.

    An inactive group keeps weights, moments and step count: what torch does where the gradient is None. The fused kernel divides the
    gradients by `grad_scale` on its way and, where `found_inf` is 1, leaves weights, moments and step count as they are; the host never
    learns of it inside the step.
    """

    def __init__(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> None:
        super().__init__(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates the active groups; creates the state of all, so that a checkpoint at any step is complete."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.create_state(parameter)
        everything = self.param_groups
        self.param_groups = self.active_groups()
        try:
            super().step(closure)
        finally:
            self.param_groups = everything

    def _no_updates(self, parameter: Tensor) -> Tensor:
        """The fused kernel counts on the device."""
        return torch.zeros((), dtype=torch.float32, device=parameter.device)


def _gate_vendor_adam(vendor: type) -> type:
    """Returns `vendor` (a FusedAdam) gated by groups. Its kernels cannot skip on the device, so the flag is read: one wait per update."""

    class GatedFusedAdam(Gated, vendor):
        def __init__(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> None:
            super().__init__(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, adam_w_mode=True)

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            if self.found_inf is not None and self.found_inf.item():
                return
            everything = self.param_groups
            self.param_groups = [group for group in self.active_groups() if any(p.grad is not None for p in group["params"])]
            if self.grad_scale is not None:
                torch._foreach_div_([p.grad for group in self.param_groups for p in group["params"] if p.grad is not None], self.grad_scale)
            try:
                super().step()
            finally:
                self.param_groups = everything

    return GatedFusedAdam


def deepspeed_fused_adam(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Builds DeepSpeed's FusedAdam, gated.

    Raises: ConfigError without a CUDA device, for which alone its kernel is written.
    """
    if not torch.cuda.is_available():
        raise ConfigError("optimizer.name 'deepspeed_fused_adam' needs a CUDA device and there is none; use optimizer.name 'adamw'")
    return _gate_vendor_adam(importlib.import_module("deepspeed.ops.adam").FusedAdam)(groups, config)


def apex_fused_adam(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Builds NVIDIA apex's FusedAdam, gated.

    Raises: ConfigError when apex is missing, is PyPI's unrelated package of that name, or lacks its CUDA half (amp_C).
    """
    build = (
        "build NVIDIA's from a clone of its repository with `APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation .`, or use optimizer.name 'adamw'"
    )
    try:
        importlib.import_module("apex")
    except ImportError as error:
        raise ConfigError(f"optimizer.name 'apex_fused_adam': apex is not installed; {build}") from error
    try:
        vendor = importlib.import_module("apex.optimizers").FusedAdam
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "optimizer.name 'apex_fused_adam': the installed `apex` has no apex.optimizers.FusedAdam; "
            f"PyPI's package of that name is an unrelated web toolkit: uninstall it and {build}"
        ) from error
    try:
        importlib.import_module("amp_C")
    except ImportError as error:
        raise ConfigError(f"optimizer.name 'apex_fused_adam': only apex's Python half is installed (no amp_C); {build}") from error

    class CountingPerGroup(_gate_vendor_adam(vendor)):
        """apex counts the updates of a whole group."""

        def updates_of(self, group: dict[str, Any], parameter: Tensor) -> int:
            self.create_state(parameter)
            return group.get("step", 0)

        def set_updates(self, group: dict[str, Any], parameter: Tensor, count: int) -> None:
            self.create_state(parameter)
            group["step"] = count

    return CountingPerGroup(groups, config)


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Builds the optimizer that the recipe names."""
    builders = {"adamw": GatedAdamW, "deepspeed_fused_adam": deepspeed_fused_adam, "apex_fused_adam": apex_fused_adam}
    return builders[config.name](groups, config)
