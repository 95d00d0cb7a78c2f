"""AdamW from torch (fused), DeepSpeed or apex, gated by parameter group.

Source: Loshchilov and Hutter 2019, algorithm 2; FLAVA, Table A.2.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.optimizers import Beta, OptimizerConfig
from flava_ds.errors import ConfigError
from flava_ds.optimizers.apex_adam import apex_fused_adam
from flava_ds.optimizers.base import Gated, Uncompiled

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Running averages of the gradients and of their squares."""


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimizerConfig, type="adamw"):
    """Adam with decoupled weight decay (FLAVA, Table A.2)."""

    name: Literal["adamw", "deepspeed_fused_adam", "apex_fused_adam"] = "adamw"
    """Implementation: torch's fused one, or a vendor's for CUDA devices."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the averages of gradients and of their squares."""
    eps: Annotated[float, AtLeast(0), AtMost(1)] = 1e-8
    """Added to the square root of the second average."""

    @property
    def label(self) -> str:
        """Names the implementation."""
        return self.name

    def build(self, groups: list[dict[str, Any]]) -> Gated:
        """Builds the implementation called `name`.

        Raises: ConfigError if it is a vendor's that this machine lacks.
        """
        builders: dict[str, Callable[..., Gated]] = {
            "adamw": GatedAdamW,
            "deepspeed_fused_adam": deepspeed_fused_adam,
            "apex_fused_adam": apex_fused_adam,
        }
        return builders[self.name](groups, self)


class GatedAdamW(Uncompiled, Gated, torch.optim.AdamW):
    """torch's fused AdamW over the active groups only.

    An inactive group keeps weights, moments and step count, as torch does for a gradient of None. The fused
    kernel divides the gradients by `grad_scale`; if `found_inf` is 1, it leaves weights, moments and step
    count unchanged. The host never learns of it during the step.
    """

    moments = MOMENTS

    def __init__(self, groups: list[dict[str, Any]], config: AdamWConfig) -> None:
        super().__init__(
            groups,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Updates the active groups."""
        self.create_states()
        everything = self.param_groups
        self.param_groups = self.active_groups()
        try:
            # gradients are off already; to turn them off, torch's own wrapper would load the compiler
            return inspect.unwrap(torch.optim.AdamW.step)(self, closure)
        finally:
            self.param_groups = everything


def _gate_deepspeed_adam(vendor: type) -> Callable[..., Gated]:
    """Returns DeepSpeed's FusedAdam `vendor`, gated by groups.

    Its kernel cannot skip an update on the device, so the host reads `found_inf`: one wait per update.
    """

    class GatedFusedAdam(Gated, vendor):
        moments = MOMENTS

        def __init__(self, groups: list[dict[str, Any]], config: AdamWConfig) -> None:
            super().__init__(  # type: ignore[call-arg]  # the vendor's
                groups,
                lr=config.lr,
                betas=config.betas,
                eps=config.eps,
                weight_decay=config.weight_decay,
                adam_w_mode=True,
            )

        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures
            if self.found_inf is not None and self.found_inf.item():
                return
            everything = self.param_groups
            self.param_groups = self.moving_groups()
            if self.grad_scale is not None:
                torch._foreach_div_(
                    [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None],
                    self.grad_scale,
                )
            try:
                super().step()
                self._share_counts()
            finally:
                self.param_groups = everything

        def _share_counts(self) -> None:
            """Gives the tensors of a group the count of its last, which alone the vendor raises."""
            for group in self.param_groups:
                own = [self.state[p] for p in group["params"] if p.grad is not None]
                for state in own:
                    state["step"] = own[-1]["step"]

        def _no_updates(self, parameter: Tensor) -> int:
            return 0  # counted on the host

    return GatedFusedAdam


def deepspeed_fused_adam(groups: list[dict[str, Any]], config: AdamWConfig) -> Gated:
    """Builds DeepSpeed's FusedAdam, gated.

    Raises: ConfigError without a CUDA device, the only kind its kernel supports.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "optimizer.name 'deepspeed_fused_adam' needs a CUDA device and there is none; use "
            "optimizer.name 'adamw'"
        )
    return _gate_deepspeed_adam(importlib.import_module("deepspeed.ops.adam").FusedAdam)(groups, config)
