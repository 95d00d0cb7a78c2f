"""Hooks around training: checkpoints, spikes, checksums, profiling, stop requests, norms, metrics.

The trainer calls the hooks of all watchers in the same order on every rank, so a hook may run a collective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.errors import UserError
from flava_ds.objectives.base import FeatureGradients
from flava_ds.training.task import StepOutput


class DivergedError(Exception):
    """The run diverged, on all ranks alike. The message says how; `step` is where it was detected."""

    def __init__(self, told: str, step: int) -> None:
        super().__init__(told)
        self.step = step


@dataclass(frozen=True)
class Note:
    """What a rank tells the others at every step along with its counts, packed into one integer."""

    saving: int = 0
    """Progress of its part of a checkpoint: a number below 16."""
    stop: bool = False
    """The rank was asked to stop."""
    save: bool = False
    """A checkpoint is due."""

    def __or__(self, other: Note) -> Note:
        return Note(self.saving | other.saving, self.stop or other.stop, self.save or other.save)

    def packed(self) -> int:
        """Packs the note into an integer."""
        return self.saving + 16 * self.stop + 32 * self.save

    @classmethod
    def unpacked(cls, number: int) -> Self:
        """Unpacks what `packed` made."""
        return cls(number % 16, bool(number & 16), bool(number & 32))


@dataclass(kw_only=True)
class Update:
    """One optimizer step on this rank. Device values stay on the device; counts and lengths do not."""

    step: int
    kind: str
    source: str
    lr: float
    counts: Mapping[str, int]
    """Terms of each active objective, over all ranks and micro-batches."""
    denominators: Mapping[str, Tensor]
    """`counts`, at least 1, divided by the world size, since gradients are averaged over ranks."""
    batches: Sequence[Batch]
    flops: float
    """Of this rank's micro-batches, forward and backward."""
    target_flops: float
    """Of the frozen networks that compute these batches' targets."""
    waited_s: float
    """Seconds spent waiting for the loader."""
    gradients: Sequence[Mapping[str, FeatureGradients] | None] = ()
    """Per micro-batch, the gradients of the step's pooled losses; None if the step has a single micro-batch.
    """
    outputs: list[StepOutput] = field(default_factory=list)
    loss: Tensor | None = None
    """This rank's part of the step's loss, which is the mean over ranks."""
    grad_norm: Tensor | None = None
    """Over all ranks, before clipping."""


class Watcher:
    """Base class of watchers. Every hook does nothing unless overridden."""

    failure: UserError | None = None
    """Why the run cannot go on after this step, on all ranks alike: it is saved first."""

    def on_start(self, first_step: int) -> None:
        """Called when the run starts at `first_step`, or resumes there after a rollback."""

    def around(self, step: int, batch: Batch) -> AbstractContextManager[Any]:
        """Returns a context for the whole step; `batch` is its first micro-batch."""
        return nullcontext()

    def note(self) -> Note:
        """Returns what this rank tells the others at this step."""
        return Note()

    def heard(self, step: int, notes: Sequence[Note]) -> None:
        """Called with the notes of all ranks, in rank order."""

    def before_update(self, update: Update) -> None:
        """Called when the batches are on the device and before any parameter moves."""

    def after_update(self, update: Update) -> None:
        """Called after the parameters have moved, or the update was skipped."""

    def on_record(self, step: int, record: Mapping[str, Any]) -> None:
        """Called after a record is written. Raises: DivergedError to roll the run back to a checkpoint."""

    def after_step(self, step: int, *, stopping: bool) -> None:
        """Called after the step; `stopping` if it is the last one because a rank was asked to stop."""

    def on_end(self, steps: int, *, stopped: bool) -> None:
        """Called when the run ends after `steps` updates; `stopped` if it was asked to stop."""
