"""NVIDIA apex's FusedAdam in its capturable form, gated by parameter group: no update waits for the device.

Checked against apex at 6424da3. Of apex only this optimizer is supported: docs/architecture.md says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flava_ds.errors import ConfigError
from flava_ds.optimizers.base import Gated

if TYPE_CHECKING:
    from flava_ds.optimizers.adamw import AdamWConfig

BUILD = (
    "build NVIDIA's from a clone of its repository with `APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install "
    "--no-build-isolation .`, or use optimizer.name 'adamw'"
)


class Scaler:
    """What apex's step asks of torch.amp.GradScaler: a flag that skips, and what divides the gradients.

    Both stay on the device, so that clipping and skipping are part of apex's one kernel.
    """

    def __init__(self, found_inf: Tensor, scale: Tensor) -> None:
        self.found_inf, self.scale = found_inf, scale

    def _check_inf_per_device(self, optimizer: object) -> dict[torch.device, Tensor]:
        return {self.found_inf.device: self.found_inf}

    def _get_scale_async(self) -> Tensor:
        return self.scale


class ApexGates(Gated):
    """Lets groups of apex's FusedAdam sleep; a base class before it.

    Its step() has four habits to know. It counts an update before it reads the flag of that update, so the
    flag must be there beforehand. It counts by group, whereas ZeRO-3 calls it for one part of a group after
    the other (sub_group_size), so each tensor has its own count, which is the group's while it moves. It
    pairs groups, and the parameters in them, with a list of master weights made at the start, by position
    and up to the shorter of both: a group that is missing would cost others their parameters. And it wants
    learning rates on the device.
    """

    moments = ("exp_avg", "exp_avg_sq")
    _dummy_overflow_buf: Tensor
    """apex's flag, which skips an update."""

    def __init__(self, groups: list[dict[str, Any]], config: AdamWConfig) -> None:
        rates = [group.get("lr", config.lr) for group in groups]
        super().__init__(  # type: ignore[call-arg]  # apex's
            [group | {"lr": torch.tensor(rate)} for group, rate in zip(groups, rates, strict=True)],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_w_mode=True,
            capturable=True,
        )
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures
        """Updates the active groups, unless found_inf is 1."""
        self.create_states()
        everything = self.param_groups
        moving = self.moving_groups()
        if not moving:
            return
        device = moving[0]["params"][0].device
        flag = torch.zeros((), device=device) if self.found_inf is None else self.found_inf
        scale = torch.ones((), device=device) if self.grad_scale is None else self.grad_scale
        self._dummy_overflow_buf.copy_(flag)
        rates = [group["lr"] for group in moving]
        counts = [[self.create_state(p)["step"] for p in group["params"]] for group in moving]
        for group, rate, own in zip(moving, rates, counts, strict=True):
            group["step"] = own[0].clone()
            group["lr"] = torch.full((), rate, dtype=torch.float32, device=device)
        self.param_groups = moving
        self.param_groups_master = [{"params": [None] * len(group["params"])} for group in moving]
        try:
            super().step(grad_scaler=Scaler(flag, scale))  # type: ignore[call-overload]  # apex's
        finally:
            self.param_groups = everything
            for group, rate, own in zip(moving, rates, counts, strict=True):
                group["lr"], count = rate, group.pop("step")
                for part in own:
                    part.copy_(count)

    def _no_updates(self, parameter: Tensor) -> Tensor:
        return torch.zeros(1, dtype=torch.int32, device=parameter.device)


def gate(vendor: type) -> Callable[..., Gated]:
    """Returns apex's FusedAdam `vendor` with groups that can sleep."""
    return type("GatedApexAdam", (ApexGates, vendor), {})


def apex_fused_adam(groups: list[dict[str, Any]], config: AdamWConfig) -> Gated:
    """Builds NVIDIA apex's FusedAdam, gated.

    Raises: ConfigError if apex is missing, is PyPI's unrelated package of that name, was built without CUDA
    (no amp_C), or is too old for capturable updates.
    """
    try:
        importlib.import_module("apex")
    except ImportError as error:
        raise ConfigError(f"optimizer.name 'apex_fused_adam': apex is not installed; {BUILD}") from error
    try:
        vendor = importlib.import_module("apex.optimizers").FusedAdam
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "optimizer.name 'apex_fused_adam': the installed `apex` has no apex.optimizers.FusedAdam; "
            f"PyPI's package of that name is an unrelated web toolkit: uninstall it and {BUILD}"
        ) from error
    try:
        library = importlib.import_module("amp_C")
    except ImportError as error:
        raise ConfigError(
            f"optimizer.name 'apex_fused_adam': only apex's Python half is installed (no amp_C); {BUILD}"
        ) from error
    if not hasattr(library, "multi_tensor_adam_capturable"):
        raise ConfigError(
            "optimizer.name 'apex_fused_adam': this apex has no capturable Adam, which skips updates on the "
            f"device; {BUILD}"
        )
    return gate(vendor)(groups, config)
