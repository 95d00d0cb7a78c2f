"""Running moments of ghost batch norms: averaged once per update over all ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.layers.ghost_norm import GhostBatchNorm
from flava_ds.objectives.base import Objective
from flava_ds.objectives.state import TrainingState
from flava_ds.training.task import StepOutput, Task

if TYPE_CHECKING:
    from flava_ds.training.engine import Engine

STATE = "batch_norms"
"""The state's name in a task, and the prefix of its statistics."""


class RunningMoments(TrainingState):
    """Averages the norms' moments into their buffers, equally at first, then with `momentum` per update.

    The buffers take no part in training. They are saved with the weights, for evaluation, and here, to be
    compared and restored as other states are.
    """

    def __init__(self, norms: Sequence[GhostBatchNorm], momentum: float) -> None:
        self.norms, self.momentum = norms, momentum
        self.updates = torch.zeros(())

    def tensors(self) -> dict[str, Tensor]:
        own = [moments for norm in self.norms for moments in (norm.running_mean, norm.running_var)]
        return {"updates": self.updates, **{str(number): moments for number, moments in enumerate(own)}}

    def begin(self, name: str, engine: Engine) -> None:
        self.updates = self.updates.to(engine.world.device)

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        if f"{STATE}/moments" not in statistics:
            return  # a step without images
        self.updates += 1
        share = torch.clamp(1 / self.updates, min=1 - self.momentum)
        sizes = [norm.running_mean.shape[0] for norm in self.norms]
        means = statistics[f"{STATE}/moments"] / statistics[f"{STATE}/groups"]
        for norm, moments in zip(self.norms, means.split(sizes, dim=1), strict=True):
            for running, own in zip((norm.running_mean, norm.running_var), moments, strict=True):
                running.lerp_(own.to(running.dtype), share.to(running.dtype))


class BatchNormTask(Task):
    """A task whose model has ghost batch norms in its image tower, and reads images as `pixel_values`."""

    def __init__(self, model: nn.Module, objectives: Mapping[str, Objective], momentum: float) -> None:
        super().__init__(model, objectives)
        self.norms = tuple(part for part in model.modules() if isinstance(part, GhostBatchNorm))
        if self.norms:
            self.states[STATE] = RunningMoments(self.norms, momentum)

    def step(self, batch: Batch, *arguments: Any) -> StepOutput:
        """Also returns the sums of the norms' moments, if the batch has images and the pass a graph."""
        output = super().step(batch, *arguments)
        if not self.norms or "pixel_values" not in batch or not torch.is_grad_enabled():
            return output
        seen = [norm.seen for norm in self.norms if norm.seen is not None]
        moments = torch.cat([own for own, _ in seen], dim=1)
        groups = moments.new_full((), seen[0][1])
        statistics = {f"{STATE}/moments": moments, f"{STATE}/groups": groups}
        return replace(output, statistics={**output.statistics, **statistics})
