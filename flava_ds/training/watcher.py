"""What looks on while a run trains: saver, spikes, checksums, profiler, stop requests, gradient norms,
metrics.

The trainer calls the hooks of all watchers in one order, which is the same on every rank, so a hook may hold
a collective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.objectives.base import FeatureGradients
from flava_ds.training.task import StepOutput


class DivergedError(Exception):
    """The run diverges, on all ranks alike; says how, and at which step that was found."""

    def __init__(self, told: str, step: int) -> None:
        super().__init__(told)
        self.step = step


@dataclass(frozen=True)
class Note:
    """What a rank tells the others at every step, beside its counts; it travels as one integer."""

    saving: int = 0
    """How far its part of a checkpoint has come: a number below 16."""
    stop: bool = False
    """It was asked to stop."""
    save: bool = False
    """It is time to save."""

    def __or__(self, other: Note) -> Note:
        return Note(self.saving | other.saving, self.stop or other.stop, self.save or other.save)

    def packed(self) -> int:
        """Returns the note as an integer."""
        return self.saving + 16 * self.stop + 32 * self.save

    @classmethod
    def unpacked(cls, number: int) -> Self:
        """Returns the note that `packed` made."""
        return cls(number % 16, bool(number & 16), bool(number & 32))


@dataclass(kw_only=True)
class Update:
    """One optimizer step on this rank. What the device computes stays there; counts and lengths are the
    host's.
    """

    step: int
    kind: str
    source: str
    lr: float
    counts: Mapping[str, int]
    """Terms of each active objective over all ranks and micro-batches."""
    denominators: Mapping[str, Tensor]
    """The same, at least 1, divided by the ranks, over which gradients are averaged."""
    batches: Sequence[Batch]
    flops: float
    """Of this rank's micro-batches, forward and backward."""
    waited_s: float
    """Seconds until the loader had the step's batches."""
    gradients: Sequence[Mapping[str, FeatureGradients] | None] = ()
    """For each micro-batch, those of the pooled losses of the whole step; None where one micro-batch is the
    step.
    """
    outputs: list[StepOutput] = field(default_factory=list)
    loss: Tensor | None = None
    """This rank's part of the step's loss; the mean over ranks is the step's."""
    grad_norm: Tensor | None = None
    """Of all ranks, before clipping."""


class Watcher:
    """A watcher overrides what it needs; every hook does nothing here."""

    def on_start(self, first_step: int) -> None:
        """The run begins at `first_step`, or goes on there after a roll-back."""

    def around(self, step: int, batch: Batch) -> AbstractContextManager[Any]:
        """Returns a context for the whole step; `batch` is its first micro-batch."""
        return nullcontext()

    def note(self) -> Note:
        """Returns what this rank tells the others at this step."""
        return Note()

    def heard(self, step: int, notes: Sequence[Note]) -> None:
        """All ranks have told each other their notes, in rank order."""

    def before_update(self, update: Update) -> None:
        """The batches are on the device, and nothing has moved yet."""

    def after_update(self, update: Update) -> None:
        """The parameters have moved, unless the update was skipped."""

    def on_record(self, step: int, record: Mapping[str, Any]) -> None:
        """A line of the log has been written. Raises: DivergedError to send the run back to a checkpoint."""

    def after_step(self, step: int, *, stopping: bool) -> None:
        """The step is done; the last one when a rank has been asked to stop."""

    def on_end(self, steps: int, *, stopped: bool) -> None:
        """The run ends after `steps` updates: by itself, or because it was `stopped`."""
