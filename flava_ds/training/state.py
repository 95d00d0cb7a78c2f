"""Training state that is no parameter: a teacher, a queue, a centre. Equal on all ranks, and part of every
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    The engine calls `begin` once, the trainer `complete` for every micro-batch before its forward pass and
    `after_update` once per update. A state derives what it keeps from numbers that are equal on all ranks, so
    its tensors are, too; they are saved by rank 0, restored on every rank whatever the ranks and ZeRO stage,
    and compared by the checksums. All that changes on the way is in its tensors: a plain number would be lost
    when a run goes on.
    """

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors to save and compare, by name; a checkpoint is restored by copying into them."""
        return {}

    def copies(self) -> dict[str, Tensor]:
        """Returns everything of it that must be equal on all ranks, what a checkpoint does not
        hold included."""
        return self.tensors()

    def begin(self, name: str, engine: Engine) -> None:
        """Moves to the engine's device and takes its first values from the initial weights, before a
        checkpoint is restored. `name` is the task's for it, e.g. "<objective>.<state>"."""

    def restored(self, engine: Engine) -> None:
        """Renews what is derived from its tensors and the engine's slots after a checkpoint has been
        restored.
        """

    def complete(self, batch: Batch) -> Batch:
        """Adds the targets that it makes for a micro-batch, on the device and without a graph."""
        return batch

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        """Follows an update.

        `statistics` are those of the losses of the objective that keeps the state, summed over micro-batches
        and ranks, and as `count` the terms of these sums; none when the objective took no part in the step.
        `engine.applied` is 0.0 on the device where the update was skipped; then the engine puts `tensors`
        back, and what else a state keeps must not change.
        """


class EmaTeacher(TrainingState):
    """A network whose weights are an exponential moving average of some of the task's parameters.

    The average is kept in fp32 beside the fp32 weights, on the rank that has those, whatever the ZeRO stage:
    a bf16 average would not move until the student differs by half. It is saved and resharded as a moment is.
    `network`, which computes, is a whole copy on every rank in the precision of the run and follows after
    each update; with several ranks that takes one all-reduce of its size in fp32. What is frozen in the
    student and its buffers are copied.
    """

    def __init__(
        self, network: nn.Module, follows: str | Mapping[str, str], momentum: Callable[[int], float]
    ) -> None:
        """`network` has the task's parameters below the prefix `follows`, by the same names, e.g. a deep copy
        of the model's image tower those below "model.image_tower.". A mapping says for several parts of the
        network, by the prefixes of their names, where each is found in the task. `momentum` is a function of
        the step."""
        self.follows = {"": follows} if isinstance(follows, str) else dict(follows)
        self.momentum = momentum
        self.network = network.requires_grad_(False).eval()
        self.key = ""

    def copies(self) -> dict[str, Tensor]:
        return {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}

    def begin(self, name: str, engine: Engine) -> None:
        self._check(name, engine)
        self.key = f"average.{name}"
        precision = next(engine.module.parameters()).dtype
        self.network.to(engine.world.device, precision)
        trained = {key for key, parameter in engine.module.named_parameters() if parameter.requires_grad}
        engine.averages[self.key] = fragments.Average(
            trained.intersection(map(self._followed_by, self._own()))
        )
        self.restored(engine)

    def restored(self, engine: Engine) -> None:
        """Fills the network from the ranks' parts of the average."""
        own, total = self._own(), 0
        places: dict[str, int] = {}
        for name, parameter in own.items():
            places[self._followed_by(name)] = total
            total += parameter.numel()
        flat = torch.zeros(total, dtype=torch.float32, device=engine.world.device)
        divided = engine.world.size > 1 and engine.stage > 0
        for fragment in fragments.held(engine):
            # Of what all ranks hold, such as frozen parameters, one rank brings the values to the sum.
            if fragment.name not in places or (divided and fragment.replicated and not engine.world.is_main):
                continue
            start = places[fragment.name] + fragment.start
            flat[start : start + fragment.numel].copy_(
                fragment.tensors.get(self.key, fragment.tensors["weight"])
            )
        if divided:
            dist.all_reduce(flat)  # every element is one rank's, and zero on the others
        for name, parameter in own.items():
            start = places[self._followed_by(name)]
            parameter.copy_(flat[start : start + parameter.numel()].view_as(parameter))
        for name, buffer in self.network.named_buffers():
            buffer.copy_(engine.module.get_buffer(self._followed_by(name)))

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        share = (1 - self.momentum(step)) * engine.applied
        for fragment in fragments.held(engine):
            if self.key in fragment.tensors:
                average = fragment.tensors[self.key]
                average.lerp_(fragment.tensors["weight"].to(average.dtype), share.to(average.device))
        self.restored(engine)

    def _own(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def _followed_by(self, name: str) -> str:
        """Returns the task's name of what the network calls `name`; the longest prefix counts."""
        known = [prefix for prefix in self.follows if name.startswith(prefix)]
        if not known:
            return name
        prefix = max(known, key=len)
        return self.follows[prefix] + name.removeprefix(prefix)

    def _check(self, name: str, engine: Engine) -> None:
        """Raises AssertionError unless the task has all that the network has, in the same shapes."""
        student = {
            **engine.shapes(),
            **{key: tuple(buffer.shape) for key, buffer in engine.module.named_buffers()},
        }
        for key, tensor in self.copies().items():
            wanted = student.get(self._followed_by(key))
            # the engine makes scalars one long
            if wanted is None or tuple(wanted) != (tuple(tensor.shape) or (1,)):
                what = "is not in the task" if wanted is None else f"has the shape {list(wanted)} there"
                raise AssertionError(
                    f"the teacher '{name}' has '{key}' of shape {list(tensor.shape)}, and "
                    f"'{self._followed_by(key)}', which it "
                    f"would follow, {what}; `follows` names the place of the network's parts in the task"
                )
