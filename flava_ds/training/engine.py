"""Wraps DeepSpeed: an optimizer step is `begin`, `forward_backward` per micro-batch, then `update`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.layers.one_node import layered
from flava_ds.layers.transformer import Block
from flava_ds.objectives.base import FeatureGradients, Features
from flava_ds.optimizers.base import activate, check_optimizer, parameter_groups
from flava_ds.ranks.distributed import DEVICE_LATER_S, World
from flava_ds.training import deepspeed_fixes, fragments
from flava_ds.training.compiling import compile_blocks
from flava_ds.training.engine_config import merged_settings, offloads, zero_stage
from flava_ds.training.norms import squared_norm
from flava_ds.training.task import StepOutput, Task, fold_biases

SKIP_COUNTERS = ("skipped", "skipped_in_a_row", "longest_skip")
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""The state of DeepSpeed's dynamic loss scaler; fp16 only."""


class Engine:
    """Owns the module, the optimizer and their ZeRO shards.

    An update with a non-finite loss or gradient norm is skipped on the device, on all ranks alike: weights,
    moments and step counts stay unchanged. `skipped` counts skipped updates, `skipped_in_a_row` the current
    run of them, `longest_skip` the longest run since it was last reset. All three are device tensors, read
    once per log line. `loss` is this rank's part of the current step's loss, which is the mean over ranks.
    `applied` is 1.0, or 0.0 if the last update was skipped.
    """

    def __init__(self, module: Task, config: Config, world: World) -> None:
        self.settings = merged_settings(config, world.size, world.device.type)
        self.stage = zero_stage(self.settings)
        self.idle = config.training.idle_parameters
        self.weight_decay = config.weight_decay
        self.gradient_clipping = config.training.gradient_clipping
        self.clips_each = config.training.clip_each_parameter
        self.accumulation_steps = config.training.gradient_accumulation_steps
        self.world = world
        deepspeed_fixes.apply_before_initialize(
            config.engine.communication_timeout_s + (DEVICE_LATER_S if world.device.type == "cuda" else 0)
        )
        deepspeed_fixes.reshape_scalars(module)
        module = module.to(world.device)
        # ZeRO-3 gathers a bias for its own layer alone.
        fold_biases(module, world.device.type == "cuda" and self.stage < 3)
        if config.training.compile_blocks:
            compile_blocks(module, self.stage)
        groups = parameter_groups(module, module.users(), config.optimizer, module.first_steps())
        optimizer = check_optimizer(config.optimizer.build(groups))
        exact = fragments.exact_weights(module) if config.training.precision != "fp32" else {}
        import deepspeed

        self.deepspeed, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=self.settings, dist_init_required=False
        )
        deepspeed_fixes.wait_in_streams(self.deepspeed)
        deepspeed_fixes.keep_what_travels_alone(self.deepspeed)
        deepspeed_fixes.unscale_by_their_own_scale(self.deepspeed.optimizer)
        deepspeed_fixes.skip_at_the_smallest_scale(self.deepspeed.optimizer)
        self.module, self.optimizer = module, optimizer
        self.untrained: dict[str, Tensor] = {}
        """In half precision, this rank's part of the parameters that are not trained, flat and in fp32."""
        fragments.start_from(self, exact)
        self._blocks = [part for part in module.modules() if isinstance(part, Block)]
        self.skipped, self.skipped_in_a_row, self.longest_skip = (
            torch.zeros((), dtype=torch.int64, device=world.device) for _ in range(3)
        )
        self._kind: str | None = None
        self._micro_steps = 0
        self.loss = torch.zeros((), device=world.device)
        self.applied = torch.ones((), device=world.device)
        self.averages: dict[str, fragments.Average] = {}
        """Running averages of parameters, by their names in checkpoints."""
        shared = world.size > 1 and self.stage > 0
        self.optimizer.hold(fragments.places(self), self._add_up if shared else None)
        with torch.no_grad():
            for name, state in module.states.items():
                state.begin(name, self)

    def _add_up(self, numbers: Tensor) -> None:
        """Adds numbers of all ranks in place, also where the optimizer's state is in host memory."""
        total = numbers.to(self.world.device)
        dist.all_reduce(total)
        numbers.copy_(total)

    def held(self) -> Iterator[fragments.Fragment]:
        """Yields the elements of parameters that this rank has in fp32, with all that is kept beside them."""
        return fragments.held(self)

    def keep_average(self, key: str, names: set[str]) -> None:
        """Begins a running average of these parameters, in fp32 beside the weights; `held` yields it."""
        self.averages[key] = fragments.Average(names)
        for _ in self.held():  # which begins it with the weights of now
            pass

    def move_average(self, key: str, share: float) -> None:
        """Moves a running average by a share of its distance to the weights, unless the last update was
        skipped.
        """
        applied = share * self.applied
        for fragment in self.held():
            if key in fragment.tensors:
                average = fragment.tensors[key]
                average.lerp_(fragment.tensors["weight"].to(average.dtype), applied.to(average.device))

    def gather(self, key: str, into: Mapping[str, Tensor]) -> None:
        """Fills whole tensors, by parameter, with a running average, or with weights where it does not follow
        them. All ranks call it together.
        """
        places, total = {}, 0
        for name, tensor in into.items():
            places[name] = total
            total += tensor.numel()
        flat = torch.zeros(total, dtype=torch.float32, device=self.world.device)
        divided = self.world.size > 1 and self.stage > 0
        for fragment in self.held():
            # All ranks hold replicated fragments, e.g. frozen parameters; only the main rank adds them.
            if fragment.name not in places or (divided and fragment.replicated and not self.world.is_main):
                continue
            start = places[fragment.name] + fragment.start
            flat[start : start + fragment.numel].copy_(fragment.tensors.get(key, fragment.tensors["weight"]))
        if divided:
            dist.all_reduce(flat)  # each element is non-zero on one rank at most
        for name, tensor in into.items():
            tensor.copy_(flat[places[name] : places[name] + tensor.numel()].view_as(tensor))

    @property
    def offloaded(self) -> bool:
        """True if optimizer state is kept in host memory."""
        return offloads(self.settings["zero_optimization"], "offload_optimizer")

    def layered(self) -> int:
        """Counts the transformer blocks that run their layers one by one, which all ranks must do alike (see
        layers/one_node.py); 0 where there is one rank.
        """
        return layered(self._blocks, self.world.device) if self.world.size > 1 else 0

    def layout(self) -> dict[str, object]:
        """Describes how training state is sharded and stored; a resumed run may change all of it."""
        precision = next((name for name in ("bf16", "fp16") if name in self.settings), "fp32")
        return {
            "ZeRO stage": self.stage,
            "offload_optimizer": self.offloaded,
            "precision": precision,
            "optimizer": type(self.optimizer).__name__,
        }

    def begin(self, kind: str, lr: float, step: int = 0) -> None:
        """Opens step `step`, of `kind`: sets learning rate and weight decay, activates its groups, clears
        stale gradients."""
        if self._kind is not None:
            raise AssertionError("the previous optimizer step was not finished with update()")
        self._kind, self._micro_steps = kind, 0
        self.loss = torch.zeros((), device=self.world.device)
        activate(self.optimizer, kind, self.idle, step)
        decay = self.weight_decay(step)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, decay if group["decayed"] else 0.0
        deepspeed_fixes.clear_stale_gradients(self.deepspeed.optimizer)

    @torch.no_grad()
    def complete_step(self, batches: list[Batch]) -> list[Batch]:
        """Completes the micro-batches of a step: each by itself, then all of them together."""
        batches = [self.module.complete(batch) for batch in batches]
        for state in self.module.states.values():
            batches = state.complete_step(batches)
        return batches

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
        """Runs one micro-batch and accumulates its gradients. `gradients` come from the step's pooled losses.

        DeepSpeed averages gradients over ranks, so `denominators` holds counts over all ranks and
        micro-batches divided by the world size.
        """
        if batch.kind != self._kind:
            raise AssertionError(
                f"a micro-batch of kind '{batch.kind}' in a step of kind '{self._kind}': ZeRO 2 and 3 "
                "would mix up gradients"
            )
        if self._micro_steps:
            self.deepspeed.step()  # closes the previous micro-step; update() closes the last one
        output = self.deepspeed("step", batch, denominators, gradients)
        deepspeed_fixes.tell_the_last_pass(self.deepspeed)
        # The loss is already divided by the step's global count, so DeepSpeed must not divide by the
        # accumulation steps again.
        self.deepspeed.backward(output.loss, scale_wrt_gas=False)
        self._micro_steps += 1
        self.loss = self.loss + output.loss.detach()
        return output

    @torch.no_grad()
    def update(self) -> Tensor:
        """Clips and updates the parameters unless something is not finite.

        Returns the gradient norm before clipping, on the device.
        """
        if self._micro_steps != self.accumulation_steps:
            raise AssertionError(f"{self._micro_steps} micro-batches in a step of {self.accumulation_steps}")
        norm = self._global_norm()
        finite = torch.isfinite(norm)
        # Optimizers read both on the device, so neither clipping nor skipping waits for the host.
        self.optimizer.found_inf = self._beside_state((~finite).to(torch.float32))
        self.optimizer.grad_scale = None
        if self.gradient_clipping > 0 and self.clips_each:
            self._clip_each()
        elif self.gradient_clipping > 0:
            scale = ((norm + 1e-6) / self.gradient_clipping).clamp(min=1.0)
            self.optimizer.grad_scale = self._beside_state(scale)
        self.deepspeed.step()
        bad = (~finite).to(torch.int64)
        self.applied = finite.to(torch.float32)
        self.skipped += bad
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * bad
        self.longest_skip = torch.maximum(self.longest_skip, self.skipped_in_a_row)
        self._kind = None
        return norm

    def _beside_state(self, number: Tensor) -> Tensor:
        """Returns a number where the optimizer's state is.

        torch's fused AdamW would start its copy to the host without waiting, and read it before it is there.
        """
        return number.cpu() if self.offloaded else number

    @property
    def loss_scale(self) -> float:
        """What the next step's fp16 gradients are multiplied by; 1 in other precisions."""
        return float(getattr(self.deepspeed.optimizer, "loss_scale", 1.0))

    def _global_norm(self) -> Tensor:
        """Returns the norm of the gradients over all ranks; not finite if a gradient or loss is not."""
        square = self.loss * 0.0  # NaN if the loss is not finite
        for group, tensors, replicated in deepspeed_fixes.local_gradients(self.deepspeed):
            # Without ZeRO every rank has the same gradients: only rank 0 adds them to the sum over ranks.
            if not tensors or replicated and self.world.rank > 0:
                continue
            if group["active"]:
                square += squared_norm(tensors).to(square.device)
            elif "fp16" in self.settings:  # DeepSpeed skips the update if any gradient overflows
                square += 0.0 * squared_norm(tensors).to(square.device)
        if self.world.size > 1:
            dist.all_reduce(square)
        # fp16 gradients still carry the loss scale.
        return square.sqrt() / self.loss_scale

    def _clip_each(self) -> None:
        """Shrinks, in place, the gradient of every parameter whose norm over all ranks is too large."""
        parts = list(fragments.gradients(self))
        places = {name: place for place, name in enumerate(self.shapes())}
        squares = torch.zeros(len(places), device=self.world.device)
        for name, part in parts:
            squares[places[name]] += part.float().square().sum().to(squares.device)
        if self.world.size > 1 and self.stage > 0:
            dist.all_reduce(squares)
        factors = (self.gradient_clipping * self.loss_scale / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for name, part in parts:
            part.mul_(factors[places[name]].to(part.device))

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the task's training states by "<state>/<tensor>"."""
        states = self.module.states.items()
        return {f"{name}/{key}": tensor for name, state in states for key, tensor in state.tensors().items()}

    @torch.no_grad()
    def follow(self, step: int, statistics: Mapping[str, Tensor]) -> None:
        """Updates the training states after an update. If it was skipped, their tensors stay unchanged."""
        for name, state in self.module.states.items():
            before = {key: tensor.clone() for key, tensor in state.tensors().items()}
            state.after_update(step, self, self.module.statistics_of(name, statistics))
            for key, tensor in state.tensors().items():
                # Not a product with `applied`: a skipped update's statistics may be NaN, and 0 * NaN is NaN.
                tensor.copy_(torch.where(self.applied.to(tensor.device) > 0, tensor, before[key]))

    @torch.no_grad()
    def restored(self) -> None:
        """Notifies the training states that everything was restored from a checkpoint."""
        for state in self.module.states.values():
            state.restored(self)

    def counters(self) -> dict[str, object]:
        """Returns what an exact resume needs besides `training.fragments`. Waits for the device."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        dynamic = getattr(scaler, "dynamic", False)
        return {
            "updates_skipped": {name: int(getattr(self, name)) for name in SKIP_COUNTERS},
            "loss_scaler": {name: getattr(scaler, name) for name in LOSS_SCALE} if dynamic else None,
        }

    def set_counters(self, saved: Mapping[str, Any], step: int) -> None:
        """Restores the counters of a run of `step` steps; the loss scale only if both runs use one."""
        for name in SKIP_COUNTERS:
            getattr(self, name).fill_(saved["updates_skipped"][name])
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        if saved["loss_scaler"] is not None and getattr(scaler, "dynamic", False):
            for name in LOSS_SCALE:
                setattr(scaler, name, saved["loss_scaler"][name])
        self.deepspeed.global_steps = step

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the full shape of every parameter by name, in every ZeRO stage."""
        return {name: tuple(self.shape_of(parameter)) for name, parameter in self.module.named_parameters()}

    @staticmethod
    def shape_of(parameter: nn.Parameter) -> torch.Size:
        """Returns a parameter's full shape; under ZeRO-3 the parameter itself is an empty placeholder."""
        return getattr(parameter, "ds_shape", parameter.shape)
