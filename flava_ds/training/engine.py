"""DeepSpeed behind a small surface: one optimizer step is `begin`, `forward_backward` per micro-batch,
`update`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.objectives.base import FeatureGradients, Features
from flava_ds.optimizers.base import Gated, activate, parameter_groups
from flava_ds.ranks.distributed import DEVICE_LATER_S, World
from flava_ds.training import deepspeed_fixes, fragments
from flava_ds.training.engine_config import merged_settings, zero_stage
from flava_ds.training.task import StepOutput, Task

SKIP_COUNTERS = ("skipped", "skipped_in_a_row", "longest_skip")
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's dynamic loss scaler changes as it goes; fp16 only."""


class Engine:
    """Owns the module, the optimizer and their ZeRO shards.

    An update whose loss or gradient norm is not finite is skipped on the device, on all ranks alike: weights,
    moments and step counts stay as they are. `skipped` counts such updates, `skipped_in_a_row` the current
    run of them, `longest_skip` the longest since it was last set to zero; all are tensors on the device, to
    be read once per log line. So is `loss`, this rank's part of the current step's: the mean over ranks is
    the step's. `applied` is 1.0, or 0.0 where the last update was skipped.
    """

    def __init__(self, module: Task, config: Config, world: World) -> None:
        self.settings = merged_settings(config, world.size, world.device.type)
        self.stage = zero_stage(self.settings)
        self.idle = config.training.idle_parameters
        self.gradient_clipping = config.training.gradient_clipping
        self.accumulation_steps = config.training.gradient_accumulation_steps
        self.world = world
        deepspeed_fixes.apply_before_initialize(
            config.engine.communication_timeout_s + (DEVICE_LATER_S if world.device.type == "cuda" else 0)
        )
        deepspeed_fixes.reshape_scalars(module)
        module = module.to(world.device)
        optimizer = config.optimizer.build(parameter_groups(module, module.users(), config.optimizer))
        import deepspeed

        self.deepspeed, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=self.settings, dist_init_required=False
        )
        self.module, self.optimizer = module, cast(Gated, optimizer)  # which is a torch optimizer as well
        self.skipped, self.skipped_in_a_row, self.longest_skip = (
            torch.zeros((), dtype=torch.int64, device=world.device) for _ in range(3)
        )
        self._kind: str | None = None
        self._micro_steps = 0
        self.loss = torch.zeros((), device=world.device)
        self.applied = torch.ones((), device=world.device)
        self.averages: dict[str, fragments.Average] = {}
        """Running averages of parameters, by the names that checkpoints give them."""
        with torch.no_grad():
            for name, state in module.states.items():
                state.begin(name, self)

    @property
    def offloaded(self) -> bool:
        """True when optimizer state lives in host memory."""
        return self.settings["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"

    def layout(self) -> dict[str, object]:
        """Returns how training state is split and kept, for the record: none of it has to be equal when a run
        goes on.
        """
        precision = next((name for name in ("bf16", "fp16") if name in self.settings), "fp32")
        return {
            "ZeRO stage": self.stage,
            "offload_optimizer": self.offloaded,
            "precision": precision,
            "optimizer": type(self.optimizer).__name__,
        }

    def begin(self, kind: str, lr: float) -> None:
        """Opens an optimizer step of `kind`: sets the learning rate, wakes the groups it moves, clears what
        the last step left.
        """
        if self._kind is not None:
            raise AssertionError("the previous optimizer step was not finished with update()")
        self._kind, self._micro_steps = kind, 0
        self.loss = torch.zeros((), device=self.world.device)
        activate(self.optimizer, kind, self.idle)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        deepspeed_fixes.clear_stale_gradients(self.deepspeed.optimizer)

    @torch.no_grad()
    def complete(self, batch: Batch) -> Batch:
        """Adds the targets that the task's frozen networks and training states make."""
        return self.module.complete(batch)

    @torch.no_grad()
    def features(self, batch: Batch) -> dict[str, Features]:
        """Computes what the pooled objectives read of a micro-batch, without a graph."""
        return self.deepspeed("features", batch)

    def forward_backward(
        self,
        batch: Batch,
        denominators: Mapping[str, Tensor],
        gradients: Mapping[str, FeatureGradients] | None = None,
    ) -> StepOutput:
        """Runs one micro-batch and adds its gradients. `gradients` are those of the step's pooled losses.

        DeepSpeed averages gradients over ranks, so `denominators` hold counts over all ranks and
        micro-batches divided by the world size.
        """
        if batch.kind != self._kind:
            raise AssertionError(
                f"a micro-batch of kind '{batch.kind}' in a step of kind '{self._kind}': ZeRO 2 and 3 "
                "would mix up gradients"
            )
        if self._micro_steps:
            self.deepspeed.step()  # closes the previous micro-step; the last one is closed by update()
        output = self.deepspeed("step", batch, denominators, gradients)
        self.deepspeed.backward(output.loss, scale_wrt_gas=False)
        self._micro_steps += 1
        self.loss = self.loss + output.loss.detach()
        return output

    @torch.no_grad()
    def update(self) -> Tensor:
        """Clips, and moves the parameters unless something is not finite. Returns the gradient norm before
        clipping, on the device.
        """
        if self._micro_steps != self.accumulation_steps:
            raise AssertionError(f"{self._micro_steps} micro-batches in a step of {self.accumulation_steps}")
        norm = self._global_norm()
        finite = torch.isfinite(norm)
        self.optimizer.found_inf = (~finite).to(torch.float32)
        self.optimizer.grad_scale = (
            ((norm + 1e-6) / self.gradient_clipping).clamp(min=1.0) if self.gradient_clipping > 0 else None
        )
        self.deepspeed.step()
        bad = (~finite).to(torch.int64)
        self.applied = finite.to(torch.float32)
        self.skipped += bad
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * bad
        self.longest_skip = torch.maximum(self.longest_skip, self.skipped_in_a_row)
        self._kind = None
        return norm

    def _global_norm(self) -> Tensor:
        """Norm of the gradients that this update applies, over all ranks; NaN or infinite when a gradient or
        a loss is.
        """
        square = self.loss * 0.0  # NaN when a loss is not finite
        for group, tensors, replicated in deepspeed_fixes.local_gradients(self.deepspeed):
            if group["active"] and tensors and not (replicated and self.world.rank > 0):
                square += (
                    torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float32))
                    .square()
                    .sum()
                    .to(square.device)
                )
        if self.world.size > 1:
            dist.all_reduce(square)
        scale = getattr(self.deepspeed.optimizer, "loss_scale", 1.0)
        return square.sqrt() / scale

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the task's training states, by "<state>/<tensor>"."""
        states = self.module.states.items()
        return {f"{name}/{key}": tensor for name, state in states for key, tensor in state.tensors().items()}

    @torch.no_grad()
    def follow(self, step: int, statistics: Mapping[str, Tensor]) -> None:
        """Lets the training states follow the update just made; where it was skipped, their tensors stay as
        they are.

        `statistics` are those of the micro-batches, summed over all of them and over the ranks.
        """
        for name, state in self.module.states.items():
            before = {key: tensor.clone() for key, tensor in state.tensors().items()}
            state.after_update(step, self, self.module.statistics_of(name, statistics))
            for key, tensor in state.tensors().items():
                # The sums of a skipped update may be NaN, which no factor of zero removes.
                tensor.copy_(torch.where(self.applied.to(tensor.device) > 0, tensor, before[key]))

    @torch.no_grad()
    def restored(self) -> None:
        """Tells the training states that weights, averages and their own tensors come from a
        checkpoint now."""
        for state in self.module.states.values():
            state.restored(self)

    def counters(self) -> dict[str, object]:
        """Returns what an exact continuation needs beside the fragments of `training.fragments`; plain JSON
        types. Waits for the device.
        """
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return {
            "updates_skipped": {name: int(getattr(self, name)) for name in SKIP_COUNTERS},
            "loss_scaler": {name: getattr(scaler, name) for name in LOSS_SCALE}
            if getattr(scaler, "dynamic", False)
            else None,
        }

    def set_counters(self, saved: Mapping[str, Any], step: int) -> None:
        """Takes over the counters of a run that has made `step` steps; a loss scale only where both runs have
        one.
        """
        for name in SKIP_COUNTERS:
            getattr(self, name).fill_(saved["updates_skipped"][name])
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        if saved["loss_scaler"] is not None and getattr(scaler, "dynamic", False):
            for name in LOSS_SCALE:
                setattr(scaler, name, saved["loss_scaler"][name])
        self.deepspeed.global_steps = step

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the full shape of every parameter by name, in every stage."""
        return {name: tuple(self.shape_of(parameter)) for name, parameter in self.module.named_parameters()}

    @staticmethod
    def shape_of(parameter: nn.Parameter) -> torch.Size:
        """Returns a parameter's shape; under ZeRO-3 the parameter itself is an empty placeholder."""
        return getattr(parameter, "ds_shape", parameter.shape)
