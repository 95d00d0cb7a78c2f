"""Training state that is no parameter: a teacher, a queue, a centre. Equal on all ranks, and part of every checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.training import fragments

if TYPE_CHECKING:
    from flava_ds.training.engine import Engine


class TrainingState:
    """What a task keeps beside its parameters.

    The trainer calls `begin` once, `complete` for every micro-batch before its forward pass, and `after_update` once per
    update. A state derives what it keeps from numbers that are equal on all ranks, so its tensors are, too; they are
    saved by rank 0, restored on every rank whatever the ranks and ZeRO stage, and compared by the checksums.
    """

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors to save and compare, by name; a checkpoint is restored by copying into them."""
        return {}

    def copies(self) -> dict[str, Tensor]:
        """Returns everything of it that must be equal on all ranks, what a checkpoint does not hold included."""
        return self.tensors()

    def begin(self, engine: Engine) -> None:
        """Takes its first values from the engine's initial weights, before a checkpoint is restored."""

    def restored(self, engine: Engine) -> None:
        """Renews what is derived from its tensors and the engine's slots after a checkpoint has been restored."""

    def complete(self, batch: Batch) -> Batch:
        """Adds the targets that it makes for a micro-batch, on the device and without a graph."""
        return batch

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        """Follows an update.

        `statistics` are those of the objectives' losses, summed over micro-batches and ranks. `engine.applied` is 0.0
        on the device where the update was skipped; then nothing may change.
        """


class EmaTeacher(TrainingState):
    """A network whose weights are an exponential moving average of some of the task's parameters.

    The average is kept in fp32 beside the optimizer's moments, on the rank that has the fp32 weights, whatever the ZeRO
    stage: a bf16 average would not move until the student differs by half. It is saved and resharded as a moment is.
    `network`, which computes, is a whole copy on every rank and follows after each update; with several ranks that
    takes one all-reduce of its size in fp32.
    """

    def __init__(self, name: str, network: nn.Module, prefix: str, momentum: Callable[[int], float]) -> None:
        """`network` has the parameters of the task below `prefix`, by the same names; `momentum` is a function of the
        step. `name` tells averages of one run apart."""
        self.key, self.prefix, self.momentum = f"average.{name}", prefix, momentum
        self.network = network.requires_grad_(False).eval()

    def copies(self) -> dict[str, Tensor]:
        return dict(self.network.named_parameters())

    def begin(self, engine: Engine) -> None:
        self.network.to(engine.world.device)
        engine.optimizer.averages += (self.key,)
        for fragment in fragments.held(engine):
            if self.key in fragment.tensors:
                fragment.tensors[self.key].copy_(fragment.tensors["weight"])
        self.restored(engine)

    def restored(self, engine: Engine) -> None:
        """Fills the network from the ranks' parts of the average."""
        own, sizes = dict(self.network.named_parameters()), {}
        for name, parameter in own.items():
            sizes[name] = (sum(size for _, size in sizes.values()), parameter.numel())
        device, total = engine.world.device, sum(size for _, size in sizes.values())
        flat = torch.zeros(total, dtype=torch.float32, device=device)
        for name, fragment in self._followed(engine):
            start = sizes[name][0] + fragment.start
            flat[start : start + fragment.numel].copy_(fragment.tensors[self.key])
        if engine.world.size > 1 and engine.stage > 0:
            dist.all_reduce(flat)  # every element is one rank's, and zero on the others
        for name, (start, size) in sizes.items():
            own[name].copy_(flat[start : start + size].view_as(own[name]))

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        weight = (1 - self.momentum(step)) * engine.applied
        for _, fragment in self._followed(engine):
            average = fragment.tensors[self.key]
            average.lerp_(fragment.tensors["weight"].to(average.dtype), weight.to(average.device))
        self.restored(engine)

    def _followed(self, engine: Engine) -> Iterator[tuple[str, fragments.Fragment]]:
        """Yields this rank's parts of the parameters that the network has, by the network's names."""
        for fragment in fragments.held(engine):
            if fragment.name.startswith(self.prefix):
                yield fragment.name.removeprefix(self.prefix), fragment
