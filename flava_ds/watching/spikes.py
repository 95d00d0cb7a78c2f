"""Detects divergence: the loss of a step kind far above its running median, equal on all ranks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flava_ds.config import TrainingConfig
from flava_ds.ranks.distributed import World, gather_objects, log
from flava_ds.training.engine import Engine
from flava_ds.training.watcher import DivergedError, Update, Watcher

RECENT = 100
"""Losses of a kind in its running median; spikes are excluded."""
FEWEST = 8
"""Losses of a kind before anything counts as a spike."""


class SpikeWatch:
    """Keeps each kind's recent losses and the number of spikes in a row.

    All decisions are equal on all ranks. The state is part of a checkpoint, so a resumed run decides like an
    uninterrupted one.
    """

    def __init__(self, training: TrainingConfig, world: World) -> None:
        self.factor, self.steps, self._world = training.spike_factor, training.spike_steps, world
        self.rollbacks = 0
        self._recent: dict[str, deque[float]] = {}
        self._streaks: dict[str, int] = {}
        self._pending: list[tuple[int, str, Tensor]] = []

    @property
    def calm(self) -> bool:
        """True if no kind's latest loss is a spike."""
        return not any(self._streaks.values())

    def add(self, step: int, kind: str, loss: Tensor) -> None:
        """Adds this rank's part of a step's loss, on the device; the mean over ranks is the step's loss."""
        if self.factor:
            self._pending.append((step, kind, loss.detach()))

    def look(self) -> None:
        """Judges the steps since the last call. Collective; waits for the device.

        Raises: DivergedError at the step that completes training.spike_steps spikes of a kind in a row.
        """
        if not self._pending:
            return
        losses = torch.stack([loss for *_, loss in self._pending]).double()
        if self._world.size > 1:
            dist.all_reduce(losses)
        pending, self._pending = self._pending, []
        for (step, kind, _), loss in zip(pending, (losses / self._world.size).tolist(), strict=True):
            self._judge(step, kind, loss)

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, as plain JSON types."""
        return {
            "calm": self.calm,
            "rollbacks": self.rollbacks,
            "recent": {kind: list(values) for kind, values in self._recent.items()},
            "streaks": dict(self._streaks),
        }

    def set_state(self, saved: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self.rollbacks, self._pending = saved["rollbacks"], []
        self._recent = {kind: deque(values, maxlen=RECENT) for kind, values in saved["recent"].items()}
        self._streaks = dict(saved["streaks"])

    def _judge(self, step: int, kind: str, loss: float) -> None:
        """Judges one step's loss. The engine skips and counts losses that are not finite."""
        if not math.isfinite(loss):
            return
        recent = self._recent.setdefault(kind, deque(maxlen=RECENT))
        usual = median(recent) if len(recent) >= FEWEST else math.inf
        if loss <= self.factor * usual:
            self._streaks[kind] = 0
            recent.append(loss)
            return
        self._streaks[kind] = self._streaks.get(kind, 0) + 1
        if self._streaks[kind] >= self.steps:
            raise DivergedError(
                f"step {step}: the loss of {kind} steps is {loss:.4g}, and for {self._streaks[kind]} of them "
                f"in a row it has been more than {self.factor:g} times its median {usual:.4g} "
                "(training.spike_factor, training.spike_steps)",
                step,
            )


class DivergenceWatch(Watcher):
    """Rolls back or ends a run after too many spikes or skipped updates; checks once per record."""

    def __init__(self, engine: Engine, training: TrainingConfig) -> None:
        self.engine, self.limit, self.all = engine, training.stop_on_nonfinite, training.total_steps
        self.spikes = SpikeWatch(training, engine.world)

    def after_update(self, update: Update) -> None:
        assert update.loss is not None  # the update is made
        self.spikes.add(update.step, update.kind, update.loss)

    def on_record(self, step: int, record: Mapping[str, Any]) -> None:
        longest = int(self.engine.longest_skip)
        self.engine.longest_skip.zero_()
        if longest:
            self._judge(step, longest, record)
        self.spikes.look()

    def _judge(self, step: int, longest: int, record: Mapping[str, Any]) -> None:
        """Warns of `longest` skipped updates in a row.

        Raises: DivergedError when they are too many, or all of the run, or when the weights are not finite,
        because then all later ones will be skipped, too.
        """
        if (broken := self._broken_weights()) is not None:
            optimizer = type(self.engine.optimizer).__name__
            raise DivergedError(
                f"step {step}: weights are not finite, such as {broken}: an update by {optimizer} has made "
                "them so, and all later ones are skipped",
                step,
            )
        told = f"{longest} updates in a row were skipped because {_not_finite(record)} not finite"
        if longest >= self.limit:
            raise DivergedError(f"step {step}: {told} (training.stop_on_nonfinite is {self.limit})", step)
        if longest == self.all:
            raise DivergedError(f"step {step}: {told}, and the run has no others", step)
        if self.engine.world.is_main:
            log.warning("step %d: up to %s", step, told)

    def _broken_weights(self) -> str | None:
        """Returns a parameter that is not finite on some rank, if any. Collective; waits for the device."""
        broken = (own.name for own in self.engine.held() if not own.tensors["weight"].isfinite().all())
        found = gather_objects(self.engine.world, next(broken, None))
        return next((name for name in found if name is not None), None)


def _not_finite(record: Mapping[str, Any]) -> str:
    """Names the losses of a record that are not finite, or else the gradient, before `not finite`."""
    losses = [
        name.removeprefix("loss/")
        for name, value in record.items()
        if name.startswith("loss/") and not math.isfinite(value)
    ]
    if not losses:
        return "a gradient was"
    return f"the loss of {losses[0]} was" if len(losses) == 1 else f"the losses of {', '.join(losses)} were"
