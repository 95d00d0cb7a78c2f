"""Training state that is not a parameter, e.g. a teacher, queue or centre; equal on all ranks, saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from flava_ds.batch import Batch

if TYPE_CHECKING:
    from flava_ds.training.engine import Engine


class TrainingState:
    """State that a task keeps in addition to its parameters.

    The engine calls `begin` once. The trainer calls `complete` for every micro-batch before its forward pass,
    and `after_update` once per update. A state must derive its values from numbers that are equal on all
    ranks, so that its tensors are equal too. Rank 0 saves them, every rank restores them whatever the world
    size and ZeRO stage, and the checksums compare them. Anything that changes during training must be in
    `tensors`: a plain Python number would be lost on resume.
    """

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors to save and compare, by name; restoring copies into them."""
        return {}

    def copies(self) -> dict[str, Tensor]:
        """Returns all tensors that must be equal on all ranks, including those not in checkpoints."""
        return self.tensors()

    def begin(self, name: str, engine: Engine) -> None:
        """Moves to the engine's device and initialises from the initial weights, before any restore.

        `name` is the task's name for the state, e.g. "<objective>.<state>".
        """

    def restored(self, engine: Engine) -> None:
        """Recomputes what derives from its tensors and the engine's fragments, after a restore."""

    def complete(self, batch: Batch) -> Batch:
        """Adds the state's targets to a micro-batch, on the device and without a graph."""
        return batch

    def complete_step(self, batches: list[Batch]) -> list[Batch]:
        """Changes the targets of a step's micro-batches, which `complete` has seen one by one, where they
        depend on each other; all ranks together.
        """
        return batches

    def report(self) -> dict[str, Tensor]:
        """Returns scalars for the log, by name, equal on all ranks; read once per line, as
        metric/<name>/<objective>. A name with a slash is a whole key of the log.
        """
        return {}

    def complaint(self, numbers: Mapping[str, float]) -> str | None:
        """Returns one line for people when what it reports, `numbers`, shows that training has gone wrong."""
        return None

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        """Follows an update.

        `statistics` holds the owning objective's loss statistics, summed over micro-batches and ranks, and
        their number of terms as `count`. It is empty if the objective took no part in the step.
        `engine.applied` is a device scalar, 0.0 if the update was skipped: the engine then restores
        `tensors`, and the state must leave everything else unchanged.
        """


class WeightAverage(TrainingState):
    """An exponential moving average of all trained weights, to evaluate and to export; it computes nothing.

    It is kept as an EmaTeacher's is. Its momentum is at most (1 + step) / (10 + step), as in TensorFlow's
    ExponentialMovingAverage, so that it soon forgets the initial weights.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.key = ""

    def begin(self, name: str, engine: Engine) -> None:
        self.key = f"average.{name}"
        engine.keep_average(self.key, {n for n, own in engine.module.named_parameters() if own.requires_grad})

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        engine.move_average(self.key, 1 - min(self.momentum, (1 + step) / (10 + step)))


class EmaTeacher(TrainingState):
    """A network whose weights are an exponential moving average of some of the task's parameters.

    The average is kept in fp32, sharded like the fp32 weights, whatever the ZeRO stage: in bf16 it would not
    move before the student differed by about half. It is saved and resharded like an optimizer moment.
    `network`, which computes the targets, is a full copy on every rank in the run's precision, refreshed
    after each update; with several ranks this takes one fp32 all-reduce of its size. Buffers and parameters
    that are frozen in the student are copied.
    """

    def __init__(
        self, network: nn.Module, follows: str | Mapping[str, str], momentum: Callable[[int], float]
    ) -> None:
        """Follows the task's parameters below the prefix `follows` with `momentum`, a function of the step.

        E.g. "model.image_tower." for a deep copy of the model's image tower. A mapping gives a prefix in the
        task for each prefix in the network.
        """
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
        engine.keep_average(self.key, trained.intersection(map(self._followed_by, self._own())))
        self.restored(engine)

    def restored(self, engine: Engine) -> None:
        """Fills the network from the ranks' shards of the average."""
        engine.gather(self.key, {self._followed_by(name): own for name, own in self._own().items()})
        for name, buffer in self.network.named_buffers():
            buffer.copy_(engine.module.get_buffer(self._followed_by(name)))

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        engine.move_average(self.key, 1 - self.momentum(step))
        self.restored(engine)

    def _own(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def _followed_by(self, name: str) -> str:
        """Returns the task's name of the network's parameter `name`; the longest matching prefix wins."""
        known = [prefix for prefix in self.follows if name.startswith(prefix)]
        if not known:
            return name
        prefix = max(known, key=len)
        return self.follows[prefix] + name.removeprefix(prefix)

    def _check(self, name: str, engine: Engine) -> None:
        """Raises AssertionError unless the task has every tensor of the network, in the same shape."""
        student = {
            **engine.shapes(),
            **{key: tuple(buffer.shape) for key, buffer in engine.module.named_buffers()},
        }
        for key, tensor in self.copies().items():
            wanted = student.get(self._followed_by(key))
            # the engine reshapes scalars to [1]
            if wanted is None or tuple(wanted) != (tuple(tensor.shape) or (1,)):
                what = "is not in the task" if wanted is None else f"has shape {list(wanted)} there"
                raise AssertionError(
                    f"the teacher '{name}' has '{key}' of shape {list(tensor.shape)}, but "
                    f"'{self._followed_by(key)}', which it should follow, {what}; set `follows` to the "
                    "prefixes of the network's parts in the task"
                )
