"""The loop. `train_step` is one optimizer update; watchers do everything that is not part of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
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
from flava_ds.ranks.distributed import all_reduce_counts, log, tell_failure
from flava_ds.ranks.roll_call import located
from flava_ds.ranks.stop_signals import StopRequest
from flava_ds.training.engine import Engine
from flava_ds.training.watcher import DivergedError, Note, Update, Watcher


class Loader(Protocol):
    """Yields each step's micro-batches on this rank, from its first step on."""

    def __iter__(self) -> Iterator[list[Batch]]: ...

    def state(self, step: int) -> dict[str, Any]: ...

    def progress(self, step: int) -> dict[str, float]: ...

    def go_back(self, step: int, failed: int) -> None: ...


class Recorder(Protocol):
    """Turns updates into lines of the log."""

    def due(self, step: int) -> bool:
        """Tells whether a line follows `step`."""

    def write(self, update: Update) -> Mapping[str, Any]:
        """Writes the line and returns it; all ranks together."""

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
        """`go_back` returns a diverged run to a checkpoint and returns its step; it raises where the run must
        end.
        """
        self.config, self.engine, self.loader, self.recorder = config, engine, loader, recorder
        self.watchers, self.first_step, self.go_back = tuple(watchers), first_step, go_back
        self.task, self.world = engine.module, engine.world
        self.stopping, self._stop = False, StopRequest()
        self._objectives, self._kinds = tuple(self.task.objectives), self.task.kinds
        self._sources = {name: number for number, name in enumerate(sorted(config.data.sources))}

    def fit(self) -> int:
        """Trains to the end, or until a signal asks a rank to stop. Returns 0, or 128 + the signal's number.

        A run that diverges goes back to its last good checkpoint, training.max_rollbacks times at most.

        Raises: UserError when it diverges once more, when a step does not fit into memory, or when ranks
        differ.
        """
        if self.first_step >= self.config.training.total_steps:
            log.info(
                "this run has made its %d steps; raise training.total_steps to go on, or give another --name",
                self.first_step,
            )
        with self._stop.listening():
            while True:
                try:
                    for watcher in self.watchers:
                        watcher.on_start(self.first_step)
                    steps = self._take_steps()
                    for watcher in self.watchers:
                        watcher.on_end(steps, stopped=self.stopping)
                    if self.stopping:
                        log.info(
                            "stopped by a signal after step %d; start the same command again to go on", steps
                        )
                    break
                except DivergedError as error:
                    self.first_step = self.go_back(error)
        self.recorder.close()
        return 128 + (self._stop.asked or signal.SIGTERM) if self.stopping else 0

    def _take_steps(self) -> int:
        """Trains from first_step on, and returns the number of updates that the run has made at the end."""
        with closing(self._batches()) as batches:
            asked = time.perf_counter()
            for step, micro_batches in enumerate(batches, start=self.first_step):
                with ExitStack() as around:
                    for watcher in self.watchers:
                        around.enter_context(watcher.around(step, micro_batches[0]))
                    around.enter_context(located(f"in step {step}"))
                    self.train_step(step, micro_batches, waited_s=time.perf_counter() - asked)
                for watcher in self.watchers:
                    watcher.after_step(step, stopping=self.stopping)
                if self.stopping:
                    return step + 1
                asked = time.perf_counter()
        return self.config.training.total_steps

    def train_step(self, step: int, micro_batches: Sequence[Batch], waited_s: float = 0.0) -> Update:
        """One optimizer update from this rank's micro-batches."""
        # All ranks must be at the same step, source and kind, and their counts are the losses' denominators.
        update = self._agree(step, micro_batches, waited_s)
        # Frozen networks and teachers make their targets here, once, outside of any graph.
        update.batches = [self.engine.complete(batch.to(self.world.device)) for batch in micro_batches]
        # A pooled loss needs every sample of the step before the first backward pass.
        update.gradients = self._pooled_gradients(update)
        for watcher in self.watchers:
            watcher.before_update(update)

        self.engine.begin(update.kind, update.lr)
        for batch, gradients in zip(update.batches, update.gradients, strict=True):
            update.outputs.append(self.engine.forward_backward(batch, update.denominators, gradients))
        update.grad_norm = self.engine.update()
        update.loss = self.engine.loss

        self._follow(update)
        for watcher in self.watchers:
            watcher.after_update(update)
        if self.recorder.due(step):
            record = self.recorder.write(update)
            for watcher in self.watchers:
                watcher.on_record(step, record)
        return update

    def _batches(self) -> Generator[list[Batch], None, None]:
        """Passes the loader's batches on. The other ranks wait for this one's counts next, so an error of its
        loader reaches them there."""
        try:
            yield from self.loader
        except UserError:
            tell_failure(self.world, len(self._objectives))
            raise

    def _agree(self, step: int, micro_batches: Sequence[Batch], waited_s: float) -> Update:
        """Sums each objective's terms over micro-batches and ranks, makes sure that all ranks do the same
        step, and exchanges the watchers' notes."""
        first = micro_batches[0]
        if any((batch.kind, batch.source) != (first.kind, first.source) for batch in micro_batches):
            raise AssertionError(
                f"step {step}: micro-batches of several kinds or sources in one optimizer step"
            )
        parts = [self.task.counts(batch) for batch in micro_batches]
        mine = [sum(part.get(name, 0) for part in parts) for name in self._objectives]
        asked = Note(stop=self._stop.asked is not None)
        note = reduce(or_, (watcher.note() for watcher in self.watchers), asked).packed()
        source = self._sources.get(first.source, -1)
        totals, told = all_reduce_counts(self.world, mine, step, source, self._kinds.index(first.kind), note)
        notes = [Note.unpacked(number) for number in told]
        self.stopping = any(other.stop for other in notes)
        for watcher in self.watchers:
            watcher.heard(step, notes)
        counts = {
            name: total for name, total in zip(self._objectives, totals, strict=True) if name in parts[0]
        }
        return Update(
            step=step,
            kind=first.kind,
            source=first.source,
            lr=self.config.learning_rate(step),
            counts=counts,
            denominators=self._denominators(counts),
            batches=micro_batches,
            flops=sum(self.task.flops(batch) for batch in micro_batches),
            waited_s=waited_s,
        )

    def _denominators(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Counts over all ranks, divided by the ranks because gradients are averaged over them; filled on the
        device, not copied to it."""
        size, device = self.world.size, self.world.device
        return {name: torch.full((), max(count, 1) / size, device=device) for name, count in counts.items()}

    def _pooled_gradients(self, update: Update) -> list[dict[str, FeatureGradients] | None]:
        """Makes each pooled loss that of the whole step where it is spread over several micro-batches."""
        pooled = self.task.pooled(update.kind)
        if len(update.batches) == 1 or not pooled:
            return [None] * len(update.batches)
        features = [self.engine.features(batch) for batch in update.batches]
        by_name = {name: o.step_gradients([part[name] for part in features]) for name, o in pooled.items()}
        return [{name: parts[number] for name, parts in by_name.items()} for number in range(len(features))]

    def _follow(self, update: Update) -> None:
        """Lets the training states follow the update, on sums over micro-batches and ranks."""
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
    """Tells whether `step` is a multiple of `every`; never for 0."""
    return every > 0 and step % every == 0
