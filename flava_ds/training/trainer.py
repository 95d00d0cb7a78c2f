"""The loop. `train_step` is one optimizer update; everything before and after it serves starting, stopping and looking on."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flava_ds.batch import Batch, Kind
from flava_ds.checkpoints.rollback import go_back
from flava_ds.checkpoints.saver import Saver
from flava_ds.config import Config
from flava_ds.errors import UserError
from flava_ds.objectives.global_contrastive import FeatureGradients, step_gradients
from flava_ds.ranks.distributed import World, all_reduce_counts, log, tell_failure
from flava_ds.ranks.roll_call import located
from flava_ds.ranks.stop_signals import StopRequest
from flava_ds.training.engine import Engine
from flava_ds.training.pretraining import CONTRASTIVE
from flava_ds.training.schedules import learning_rate
from flava_ds.watching import checksums, out_of_memory
from flava_ds.watching.flops import step_flops
from flava_ds.watching.gradient_norms import GradientNorms
from flava_ds.watching.metrics import OBJECTIVES, Metrics, StepResult
from flava_ds.watching.profiling import StepProfiler
from flava_ds.watching.spikes import DivergedError, SpikeWatch

STOP, SAVE = 16, 32
"""Added to the saver's status, which is smaller, in what a rank tells the others at every step: it was asked to stop; it is time to save."""


class Loader(Protocol):
    """Yields each step's micro-batches on this rank, from its first step on."""

    def __iter__(self) -> Iterable[list[Batch]]: ...

    def state(self, step: int) -> dict[str, Any]: ...

    def progress(self, step: int) -> dict[str, float]: ...

    def go_back(self, step: int, failed: int) -> None: ...


class Trainer:
    """Runs updates first_step .. total_steps - 1 on this rank."""

    def __init__(self, config: Config, engine: Engine, loader: Loader, codebook: nn.Module | None, metrics: Metrics, first_step: int) -> None:
        self.config, self.engine, self.loader, self.codebook, self.metrics = config, engine, loader, codebook, metrics
        self.world: World = engine.world
        self.first_step = first_step
        metrics.clock.watch(engine.module)
        self.flops: Callable[[Config, Batch], float] = step_flops
        self._source_numbers = {source.name: number for number, source in enumerate(config.data.sources)}
        self.saver = Saver(engine, config, first_step)
        self._saved_at, self._saved_s, self._save_asked = first_step, time.monotonic(), False
        self._logged: dict[str, Any] = {}
        self._stop = StopRequest()
        self._gradient_norms = GradientNorms(engine, config.logging.objective_gradient_norms_every)
        self._profiler = StepProfiler(config, self.world, first_step, metrics.paused)
        self._equal_until = first_step
        self.spikes = SpikeWatch(config.training, self.world)

    def fit(self) -> int:
        """Trains to the end, or until a signal asks to stop; writes checkpoints on the way. Returns 0, or 128 + the signal's number.

        A run that diverges goes back to its last good checkpoint, training.max_rollbacks times at most.

        Raises: UserError when it diverges once more, when a step does not fit into memory, or when ranks differ.
        """
        if self.first_step >= self.config.training.total_steps:
            log.info("this run has made its %d steps; raise training.total_steps to go on, or give another --name", self.first_step)
        self._compare_ranks(None)
        with self._stop.listening():
            while True:
                try:
                    stop = self._take_steps()
                    break
                except DivergedError as error:
                    self._go_back(error)
        self.metrics.close()
        return 128 + (self._stop.asked or signal.SIGTERM) if stop else 0

    def _take_steps(self) -> bool:
        """Trains from first_step on; returns whether a signal ended it."""
        with closing(self._batches()) as batches:
            asked = time.perf_counter()
            for step, micro_batches in enumerate(batches, start=self.first_step):
                with self._profiler.around(step), self._memory_explained(step, micro_batches[0]), located(f"in step {step}"):
                    stop = self.train_step(step, micro_batches, waited_s=time.perf_counter() - asked)
                if stop or self._save_asked or self._due(step + 1, self.config.checkpoint.every_steps):
                    self.save(step + 1, last=stop)
                if stop:
                    log.info("stopped by a signal after step %d; start the same command again to go on", step + 1)
                    self._profiler.close(step)
                    return True
                asked = time.perf_counter()
        self.save(self.config.training.total_steps, last=True)
        return False

    def train_step(self, step: int, micro_batches: list[Batch], waited_s: float = 0.0) -> bool:
        """One optimizer update from this rank's micro-batches; returns whether any rank was asked to stop."""
        first, lr = micro_batches[0], learning_rate(self.config, step)
        counts, stop = self._agree(step, micro_batches)
        self.metrics.clock.start()
        denominators = self._denominators(counts)
        flops = sum(self.flops(self.config, batch) for batch in micro_batches)
        batches = [self._to_device(batch) for batch in micro_batches]
        gradients = self._contrastive_gradients(batches, counts)
        self._measure_objective_gradients(step, batches, denominators, gradients)

        self.engine.begin(first.kind, lr)
        sums = [self.engine.forward_backward(batch, denominators, part).sums for batch, part in zip(batches, gradients, strict=True)]
        grad_norm = self.engine.update()
        self.spikes.add(step, first.kind, self.engine.loss)
        self._compare_ranks(step)

        self.metrics.add(
            StepResult(
                kind=first.kind,
                source=first.source,
                sums=sums,
                counts=counts,
                samples=sum(batch.size for batch in batches),
                flops=flops,
                waited_s=waited_s,
                tokens=sum(len(batch.input_ids) for batch in micro_batches if batch.input_ids is not None),
                cut_tokens=sum(batch.cut_tokens for batch in micro_batches),
                skipped=sum((Counter(batch.skipped) for batch in micro_batches), Counter()),
            )
        )
        if self._due(step + 1, self.config.logging.every_steps) or step + 1 == self.config.training.total_steps:
            self._logged |= self.metrics.write(step, lr, grad_norm, self.engine.skipped, self._progress(step + 1))
            self._notice_divergence(step)
        return stop

    def save(self, step: int, last: bool = False) -> None:
        """Saves the state after `step` updates, once; waits until it is written when it is the `last`."""
        with self.metrics.paused():
            if step > self._saved_at:
                self.spikes.look()
                self.saver.save(step, self.loader.state(step), self._metric(), self.spikes.state())
                self._saved_at, self._saved_s = step, time.monotonic()
            if last:
                self.saver.finish()

    def _progress(self, step: int) -> dict[str, float]:
        """Returns how far the sources are, and how often the run has gone back."""
        return {**self.loader.progress(step), "rollbacks": self.spikes.rollbacks}

    def _metric(self) -> dict[str, Any] | None:
        """Returns what checkpoint.keep_best compares: the last value in the log."""
        name = self.config.checkpoint.best_metric
        if name and name not in self._logged and self.world.is_main:
            log.warning("checkpoint.best_metric '%s' is not in the log so far, which has %s", name, ", ".join(sorted(self._logged)) or "no numbers yet")
        return {"name": name, "value": self._logged[name], "step": self._logged["step"]} if name in self._logged else None

    def _minutes_are_over(self) -> bool:
        """Tells, by rank 0's clock, whether checkpoint.every_minutes have passed since the last save."""
        minutes = self.config.checkpoint.every_minutes
        return self.world.is_main and 0 < minutes <= (time.monotonic() - self._saved_s) / 60

    def _batches(self) -> Iterator[list[Batch]]:
        """Passes the loader's batches on. The other ranks wait for this one's counts next, so an error of its loader reaches them there."""
        try:
            yield from self.loader
        except UserError:
            tell_failure(self.world, len(OBJECTIVES))
            raise

    def _memory_explained(self, step: int, batch: Batch) -> AbstractContextManager[None]:
        """Words the error of a step that does not fit into memory."""
        return out_of_memory.explained(self.config, self.world, f"in step {step}, of {batch.kind} batches from '{batch.source}'", step, batch.source)

    def _agree(self, step: int, micro_batches: list[Batch]) -> tuple[dict[str, int], bool]:
        """Sums each objective's terms over micro-batches and ranks, makes sure that all ranks do the same step, and hears of saves and signals."""
        first = micro_batches[0]
        if any((batch.kind, batch.source) != (first.kind, first.source) for batch in micro_batches):
            raise AssertionError(f"step {step}: micro-batches of several kinds or sources in one optimizer step")
        parts = [self.engine.module.counts(batch) for batch in micro_batches]
        mine = [sum(part.get(name, 0) for part in parts) for name in OBJECTIVES]
        number = self._source_numbers.get(first.source, -1)
        note = self.saver.status + STOP * (self._stop.asked is not None) + SAVE * self._minutes_are_over()
        totals, notes = all_reduce_counts(self.world, mine, step, number, list(Kind).index(first.kind), note)
        self.saver.observe([note % STOP for note in notes])
        self._save_asked = any(note & SAVE for note in notes)
        return {name: total for name, total in zip(OBJECTIVES, totals, strict=True) if name in parts[0]}, any(note & STOP for note in notes)

    def _denominators(self, counts: dict[str, int]) -> dict[str, Tensor]:
        """Counts over all ranks, divided by the ranks because gradients are averaged over them; filled on the device, not copied to it."""
        return {name: torch.full((), max(count, 1) / self.world.size, device=self.world.device) for name, count in counts.items()}

    def _to_device(self, batch: Batch) -> Batch:
        """Moves a batch and computes the image codes that an objective will predict, unless they came with the data."""
        return self._with_codes(batch.to(self.world.device))

    def _with_codes(self, batch: Batch) -> Batch:
        if batch.masked is not None:
            return dataclasses.replace(batch, masked=self._with_codes(batch.masked))
        if batch.codebook_pixel_values is None or self.codebook is None:
            return batch
        with torch.no_grad():
            return dataclasses.replace(batch, image_codes=self.codebook.encode(batch.codebook_pixel_values))

    def _contrastive_gradients(self, batches: list[Batch], counts: dict[str, int]) -> list[FeatureGradients | None]:
        """Makes the contrastive loss that of the whole step when it is spread over several micro-batches."""
        if len(batches) == 1 or CONTRASTIVE not in counts:
            return [None] * len(batches)
        return step_gradients([self.engine.features(batch) for batch in batches])

    def _measure_objective_gradients(self, step: int, batches: list[Batch], denominators: dict[str, Tensor], parts: list[FeatureGradients | None]) -> None:
        """Measures each objective's pull on the encoders where that is due; the update is not touched."""
        if self._gradient_norms.due(step, batches[0].kind):
            with self.metrics.paused():
                self.metrics.add_gradient_norms(self._gradient_norms.measure(batches, denominators, parts))

    def _compare_ranks(self, step: int | None) -> None:
        """Makes sure that all ranks hold the same model: at the start, where `step` is None, and after the steps where that is due."""
        every = self.config.logging.checksum_every_steps
        if every and (step is None or self._due(step + 1, every)):
            with self.metrics.paused():
                checksums.check_equal(self.world, checksums.replicated(self.engine, self.codebook), step, self._equal_until)
            self._equal_until = self.first_step if step is None else step + 1

    def _notice_divergence(self, step: int) -> None:
        """Raises DivergedError after too many skipped updates or spikes in a row; called once per log line, on all ranks alike."""
        longest, limit = int(self.engine.longest_skip), self.config.training.stop_on_nonfinite
        self.engine.longest_skip.copy_(self.engine.skipped_in_a_row)
        if longest and longest < limit:
            log.warning("step %d: up to %d updates in a row were skipped, because a loss or a gradient was not finite", step, longest)
        if longest >= limit:
            raise DivergedError(
                f"step {step}: {longest} updates in a row were skipped, because a loss or a gradient was not finite (training.stop_on_nonfinite is {limit})",
                step,
            )
        self.spikes.look()

    def _go_back(self, diverged: DivergedError) -> None:
        """Goes back to the last good checkpoint and jumps the data up to the step at which the run was found to diverge.

        Raises: UserError on all ranks when there is none, or the run has gone back often enough.
        """
        self.saver.finish()
        done, most = self.spikes.rollbacks, self.config.training.max_rollbacks
        resumed = go_back(self.engine, self.config) if done < most else None
        if resumed is None:
            often = f"it has gone back {done} times (training.max_rollbacks); " if done >= most > 0 else "there is no good checkpoint; " if most else ""
            error = UserError(f"{diverged}; {often}lower optimizer.lr, set training.gradient_clipping, or look at the data; {self._where_to_continue()}")
            error.on_all_ranks = True
            raise error
        self.loader.go_back(resumed.step, diverged.step + 1)
        self.spikes.set_state(resumed.spikes)
        self.spikes.rollbacks = done + 1
        self.metrics.go_back(resumed.step, {"at": diverged.step, "to": resumed.step, "reason": str(diverged)})
        self.first_step = self._saved_at = self._equal_until = self.saver.published = resumed.step
        log.warning("%s; back to step %d, without the data of the steps since: rollback %d of %d", diverged, resumed.step, done + 1, most)

    def _where_to_continue(self) -> str:
        """Names the checkpoint that a next run would start from."""
        path: Path = self.config.run_path
        return f"the same command goes on from step {self.saver.published} under {path}" if self.saver.published else "there is no checkpoint yet"

    @staticmethod
    def _due(step: int, every: int) -> bool:
        """True at every multiple of `every`; never for 0."""
        return every > 0 and step % every == 0
