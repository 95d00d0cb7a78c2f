"""The training loop. `train_step` is one optimizer update; watchers do everything else."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.errors import UserError
from flava_ds.objectives.base import FeatureGradients
from flava_ds.ranks.distributed import all_reduce_counts, log, tell_end, tell_failure
from flava_ds.ranks.roll_call import located
from flava_ds.ranks.stop_signals import StopRequest
from flava_ds.training.engine import Engine
from flava_ds.training.watcher import DivergedError, Note, Update, Watcher


class Loader(Protocol):
    """Yields the micro-batches of each step on this rank, starting at the run's first step."""

    def __iter__(self) -> Iterator[list[Batch]]: ...

    def state(self, step: int) -> dict[str, Any]: ...

    def progress(self, step: int) -> dict[str, float]: ...

    def steps_left(self, step: int) -> dict[str, float]: ...

    def go_back(self, step: int, failed: int) -> None: ...


class Recorder(Protocol):
    """Turns updates into log records."""

    def due(self, step: int) -> bool:
        """Returns True if a record is written after `step`."""

    def write(self, update: Update) -> Mapping[str, Any]:
        """Writes the record and returns it. Collective: all ranks call it together."""

    def close(self) -> None: ...


class Trainer:
    """Runs updates first_step .. total_steps - 1 on this rank."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        loader: Loader,
        recorder: Recorder,
        watchers: Sequence[Watcher],
        first_step: int,
        go_back: Callable[[DivergedError], int],
    ) -> None:
        """`go_back` rolls a diverged run back to a checkpoint and returns its step; it may raise instead."""
        self.config, self.engine, self.loader, self.recorder = config, engine, loader, recorder
        self.watchers, self.first_step, self.go_back = tuple(watchers), first_step, go_back
        self.task, self.world = engine.module, engine.world
        self.stopping, self._stop = False, StopRequest(tell_end)
        self._objectives, self._kinds = tuple(self.task.objectives), self.task.kinds
        self._sources = {name: number for number, name in enumerate(sorted(config.data.sources))}

    @property
    def failure(self) -> UserError | None:
        """Why a watcher cannot go on."""
        return next((watcher.failure for watcher in self.watchers if watcher.failure is not None), None)

    def fit(self) -> int:
        """Trains to the last step, or until a signal stops a rank. Returns 0, or 128 + the signal number.

        A run that diverges rolls back to its last good checkpoint, at most training.max_rollbacks times.

        Raises: UserError when the rollbacks are used up, a step runs out of memory, or ranks disagree; a
        watcher's failure once the run is saved.
        """
        with self._stop.listening():
            while True:
                try:
                    for watcher in self.watchers:
                        watcher.on_start(self.first_step)
                    steps = self._take_steps()
                    for watcher in self.watchers:
                        watcher.on_end(steps, stopped=self.stopping)
                    if self.failure is not None:
                        log.info("saved after step %d, before the run ends with an error", steps)
                    elif self.stopping:
                        told = "stopped by a signal after step %d; start the same command again to go on"
                        log.info(told, steps)
                    elif steps > self.first_step:
                        told = "finished %d steps; see `flava-ds report %s` and `flava-ds evaluate --list`"
                        log.info(told, steps, shlex.quote(str(self.config.run_path)))
                    break
                except DivergedError as error:
                    self.first_step = self.go_back(error)
        self.recorder.close()
        if self.failure is not None:
            raise self.failure
        return 128 + (self._stop.asked or signal.SIGTERM) if self.stopping else 0

    def _take_steps(self) -> int:
        """Trains from first_step on. Returns the number of updates the run has made in total."""
        with closing(self._batches()) as batches:
            asked = time.perf_counter()
            for step, micro_batches in enumerate(batches, start=self.first_step):
                with ExitStack() as around:
                    for watcher in self.watchers:
                        around.enter_context(watcher.around(step, micro_batches[0]))
                    around.enter_context(located(f"in step {step}"))
                    self.train_step(step, micro_batches, waited_s=time.perf_counter() - asked)
                self.stopping |= self.failure is not None
                for watcher in self.watchers:
                    watcher.after_step(step, stopping=self.stopping)
                if self.stopping:
                    return step + 1
                asked = time.perf_counter()
        return self.config.training.total_steps

    def train_step(self, step: int, micro_batches: Sequence[Batch], waited_s: float = 0.0) -> Update:
        """Makes one optimizer update from this rank's micro-batches."""
        # All ranks must be at the same step, source and kind. The exchanged counts are the losses'
        # denominators, so they are needed before the first forward pass.
        update = self._agree(step, micro_batches, waited_s)
        # Frozen networks and teachers compute their targets here: once per batch and without a graph.
        batches = [replace(batch, step=step).to(self.world.device) for batch in micro_batches]
        update.batches = self.engine.complete_step(batches)
        # A pooled loss needs every sample of the step, so with several micro-batches it takes a first pass
        # without a graph. The pass below then backpropagates these gradients.
        update.gradients = self._pooled_gradients(update)
        for watcher in self.watchers:
            watcher.before_update(update)

        self.engine.begin(update.kind, update.lr, step)
        for batch, gradients in zip(update.batches, update.gradients, strict=True):
            update.outputs.append(self.engine.forward_backward(batch, update.denominators, gradients))
        # Clips, steps and skips non-finite updates on the device; nothing here waits for a value.
        update.grad_norm = self.engine.update()
        update.loss = self.engine.loss

        # Teachers follow after the weights have moved.
        self._follow(update)
        for watcher in self.watchers:
            watcher.after_update(update)
        # A record reads device values: only steps that write one wait for the device here.
        if self.recorder.due(step):
            record = self.recorder.write(update)
            for watcher in self.watchers:
                watcher.on_record(step, record)
        return update

    def _batches(self) -> Generator[list[Batch], None, None]:
        """Yields the loader's batches; reports its failure to the other ranks, which wait for our counts."""
        try:
            yield from self.loader
        except UserError:
            tell_failure(self.world, len(self._objectives))
            raise

    def _agree(self, step: int, micro_batches: Sequence[Batch], waited_s: float) -> Update:
        """Exchanges counts and notes, and checks that all ranks do the same step."""
        first = micro_batches[0]
        if any((batch.kind, batch.source) != (first.kind, first.source) for batch in micro_batches):
            raise AssertionError(f"step {step}: its micro-batches have different kinds or sources")
        parts = [self.task.counts(batch) for batch in micro_batches]
        mine = [sum(part.get(name, 0) for part in parts) for name in self._objectives]
        asked = Note(stop=self._stop.asked is not None)
        note = reduce(or_, (watcher.note() for watcher in self.watchers), asked).packed()
        source = self._sources.get(first.source, -1)
        kind = self._kinds.index(first.kind)
        totals, told = all_reduce_counts(self.world, mine, step, source, kind, note, self.engine.layered())
        notes = [Note.unpacked(number) for number in told]
        self.stopping = any(other.stop for other in notes)
        for watcher in self.watchers:
            watcher.heard(step, notes)
        named = zip(self._objectives, totals, strict=True)
        counts = {name: total for name, total in named if name in parts[0]}
        return Update(
            step=step,
            kind=first.kind,
            source=first.source,
            lr=self.config.learning_rate(step),
            counts=counts,
            denominators=self._denominators(counts),
            batches=micro_batches,
            flops=sum(self.task.flops(batch) for batch in micro_batches),
            target_flops=sum(self.task.target_flops(batch) for batch in micro_batches),
            waited_s=waited_s,
        )

    def _denominators(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Returns counts over all ranks divided by the world size: gradients are averaged over ranks."""
        # torch.full fills on the device; torch.tensor would copy from the host.
        size, device = self.world.size, self.world.device
        return {name: torch.full((), max(count, 1) / size, device=device) for name, count in counts.items()}

    def _pooled_gradients(self, update: Update) -> list[dict[str, FeatureGradients] | None]:
        """Returns each micro-batch's gradients of the step's pooled losses; None for a single micro-batch."""
        pooled = self.task.pooled(update.kind)
        if len(update.batches) == 1 or not pooled:
            return [None] * len(update.batches)
        features = [self.engine.features(batch) for batch in update.batches]
        by_name = {
            name: own.step_gradients(name, [part[name] for part in features]) for name, own in pooled.items()
        }
        return [{name: parts[number] for name, parts in by_name.items()} for number in range(len(features))]

    def _follow(self, update: Update) -> None:
        """Updates the training states from statistics summed over micro-batches and ranks."""
        if not self.task.states:
            return
        totals: dict[str, Tensor] = {}
        for output in update.outputs:
            for name, value in output.statistics.items():
                totals[name] = totals[name] + value.detach() if name in totals else value.detach().clone()
        if self.world.size > 1:
            for value in totals.values():
                dist.all_reduce(value)
        totals |= {
            f"{name}/count": torch.full((), float(n), device=self.world.device)
            for name, n in update.counts.items()
        }
        self.engine.follow(update.step, totals)


def is_due(step: int, every: int) -> bool:
    """Returns True if `step` is a multiple of `every`; never for 0."""
    return every > 0 and step % every == 0
