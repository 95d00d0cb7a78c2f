"""A run's measurements: sums over steps, aggregation over ranks, one log record for all sinks.

The device is read once per record.
"""

from __future__ import annotations

import math
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flava_ds.config import Config
from flava_ds.errors import UserError
from flava_ds.ranks.distributed import gather_objects, log
from flava_ds.training.engine import Engine
from flava_ds.training.trainer import is_due
from flava_ds.training.watcher import Note, Update, Watcher
from flava_ds.watching.environment import describe_start
from flava_ds.watching.log_fields import metric_key
from flava_ds.watching.pace import Pace
from flava_ds.watching.sinks import Sink, open_sinks
from flava_ds.watching.states import StateReports
from flava_ds.watching.stragglers import StepClock, StragglerWatch, find_slowest


@dataclass
class Window:
    """What one rank adds up on the host between two log records."""

    steps: int = 0
    samples: int = 0
    flops: float = 0.0
    target_flops: float = 0.0
    waited_s: float = 0.0
    worked_s: float = 0.0
    """Time until the rank first waited for others, by StepClock."""
    peak_memory: int = 0
    drawn: Counter[str] = field(default_factory=Counter)
    """Steps by source."""
    work: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """FLOPs by source."""
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    cut_tokens: Counter[str] = field(default_factory=Counter)
    padding: Counter[str] = field(default_factory=Counter)
    """Tokens of padding."""


def token_shares(windows: Sequence[Window], counted: str) -> dict[str, float]:
    """Returns, per field, what was `counted` (cut_tokens or padding) beside each source's text tokens, as a
    share of both, over all ranks.
    """
    kept: Counter[str] = Counter()
    more: Counter[str] = Counter()
    for window in windows:
        kept += window.tokens
        more += getattr(window, counted)
    return {f"{counted}/{source}": more[source] / (more[source] + number) for source, number in kept.items()}


class Metrics(Watcher):
    """Adds up steps and writes one record per `logging.every_steps`.

    Losses and accuracies of a record are means over all terms of all ranks since the last record; sums stay
    on the device until then.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        gemm_rate: float,
        first_step: int,
        progress: Callable[[int], Mapping[str, float]],
        steps_left: Callable[[int], Mapping[str, float]],
    ) -> None:
        """Opens the sinks on rank 0. Collective: all ranks must call it together.

        `gemm_rate` is the FLOP/s of all ranks' devices on plain matrix products; `progress` returns the
        fields that describe the sources' progress after a number of steps, `steps_left` how many later ones
        draw each source.
        """
        self.config, self.engine, self.world, self.gemm_rate = config, engine, engine.world, gemm_rate
        world, self._progress, self._steps_left = engine.world, progress, steps_left
        self._pace = Pace()
        self.clock = StepClock(world.device)
        self.clock.watch(engine.module)
        self._fields = {f"{name}/loss": f"loss/{name}" for name in engine.module.objectives}
        self._fields |= {
            f"{name}/{metric}": metric_key(shown, name)
            for name, metrics in engine.module.metrics.items() for metric, shown in metrics.items()
        }  # fmt: skip
        self._sums = {key: torch.zeros((), dtype=torch.float64, device=world.device) for key in self._fields}
        self._counts: Counter[str] = Counter()
        self._window = Window()
        self._norms: dict[str, Tensor] = {}
        self._numbers: dict[str, float | str] = {}
        self._states = StateReports(engine.module.states)
        self._watch = StragglerWatch(config.logging.straggler_lines)
        description = describe_start(config, world, gemm_rate)
        hosts = {rank: host for host, entry in description["hosts"].items() for rank in entry["ranks"]}
        self._hosts = [hosts[rank] for rank in range(world.size)]
        with self._writing():
            self._sinks: list[Sink] = open_sinks(config, description, first_step) if world.is_main else []
        self._since, self._paused_s = time.perf_counter(), 0.0

    def on_start(self, first_step: int) -> None:
        """Starts the time of the first record, which is not that of building what else watches the run."""
        self._since, self._paused_s = time.perf_counter(), 0.0

    def heard(self, step: int, notes: Sequence[Note]) -> None:
        """Starts the clock: from here on a rank works without waiting for others."""
        self.clock.start()

    def after_update(self, update: Update) -> None:
        """Adds one optimizer step."""
        for output in update.outputs:
            for name, value in output.sums.items():
                self._sums[name] += value
        self._counts.update(update.counts)
        window, source = self._window, update.source
        for batch in update.batches:
            window.skipped.update({(source, reason): count for reason, count in batch.read.skipped.items()})
            window.tokens[source] += batch.read.tokens
            window.cut_tokens[source] += batch.read.cut_tokens
            if "input_ids" in batch:
                window.padding[source] += batch["input_ids"].shape[0] - batch.listed("input_ids")
        window.steps += 1
        window.samples += sum(batch.size for batch in update.batches)
        window.flops += update.flops
        window.target_flops += update.target_flops
        window.drawn[source] += 1
        window.work[source] += update.flops
        window.waited_s += update.waited_s

    def add_gradient_norms(self, norms: dict[str, Tensor]) -> None:
        """Adds gradient norms by field; the next record contains the latest."""
        self._norms.update(norms)

    def add_numbers(self, numbers: Mapping[str, float | str]) -> None:
        """Adds fields to the next record that are known on the host and equal on all ranks."""
        self._numbers.update(numbers)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside (a checkpoint, a measurement) from rates."""
        begun = self._now()
        yield
        self._paused_s += self._now() - begun

    def due(self, step: int) -> bool:
        """Returns True if a record is written after `step`."""
        return (
            is_due(step + 1, self.config.logging.every_steps) or step + 1 == self.config.training.total_steps
        )

    def write(self, update: Update) -> dict[str, Any]:
        """Reduces over ranks what was added since the last record, and writes it on rank 0. Collective."""
        step = update.step
        assert update.grad_norm is not None  # the update is made
        behind = device_behind(self.world.device)
        others = {**self._norms, **self._states.tensors()}
        totals, (norm, updates, *read) = self._read_device(
            update.grad_norm, self.engine.skipped, *others.values()
        )
        elapsed = max(1e-9, time.perf_counter() - self._since - self._paused_s)
        self._window.worked_s, self._window.peak_memory = self.clock.take(), peak_memory(self.world.device)
        windows: list[Window] = gather_objects(self.world, self._window)
        samples, flops, targets, waited = (
            sum(getattr(window, name) for window in windows)
            for name in ("samples", "flops", "target_flops", "waited_s")
        )
        steps = max(1, self._window.steps)
        self._pace.add(elapsed, self._window.drawn, self._window.work)
        record = {
            "step": step,
            "time": time.time(),
            "kind": update.kind,
            "source": update.source,
            "lr": update.lr,
            "grad_norm": norm,
            **self._means(totals),
            **dict(zip(others, read, strict=True)),
            **self._numbers,
            "samples_per_second": samples / elapsed,
            "seconds_per_step": elapsed / steps,
            "data_wait": waited / self.world.size / elapsed,
            **behind,
            "flops_per_second": flops / elapsed,
            "mfu": flops / elapsed / self.gemm_rate,
            **({"mfu_with_targets": (flops + targets) / elapsed / self.gemm_rate} if targets else {}),
            "peak_memory_gib": max(window.peak_memory for window in windows) / 2**30,
            **self._compare_ranks(windows, steps),
            **self._progress(step + 1),
            **{
                f"skipped_samples/{source}/{reason}": n
                for (source, reason), n in sum((window.skipped for window in windows), Counter()).items()
            },
            **token_shares(windows, "cut_tokens"),
            **(token_shares(windows, "padding") if self.config.training.pad_to_multiple_of else {}),
            "skipped_updates": int(updates),
            **({"loss_scale": self.engine.loss_scale} if self.config.training.precision == "fp16" else {}),
            "eta_s": self._pace.seconds(self._steps_left(step + 1)),
        }
        self._reset()
        if self.world.is_main:
            self._states.warn(record)
        # JSON has no NaN.
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        with self._writing():
            for sink in self._sinks:
                sink.write(finite)
        return record

    def go_back(self, step: int, rollback: dict[str, Any]) -> None:
        """Drops what was measured from `step` on, and logs the rollback and its reason."""
        self.clock.take()
        self._reset()
        with self._writing():
            for sink in self._sinks:
                sink.go_back(step, rollback)

    def close(self) -> None:
        """Closes the sinks."""
        with self._writing():
            for sink in self._sinks:
                sink.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Rephrases the error of a sink that cannot write. Raises: UserError on rank 0."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the logs of {self.config.run_path} cannot be written ({error}); make room or remove what "
                "is in the way, then start the same command again"
            ) from error

    def _now(self) -> float:
        """Returns the time in seconds, once a GPU has finished its work."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        return time.perf_counter()

    def _read_device(self, *own: Tensor) -> tuple[dict[str, float], list[float]]:
        """Returns sums over all ranks and this rank's `own` values. This is the only wait for the device."""
        sums = torch.stack([*self._sums.values()])
        if self.world.size > 1:
            dist.all_reduce(sums)
        values = torch.cat([sums, torch.stack([value.double() for value in own])]).tolist()
        return dict(zip(self._sums, values[: len(self._sums)], strict=True)), values[len(self._sums) :]

    def _means(self, totals: dict[str, float]) -> dict[str, float]:
        """Turns sums into means, under their names in the log, for objectives that had terms.

        A sum over no terms that is not finite, of rows that are not, is noted as it is.

        Raises: UserError on all ranks for a loss over no terms, which no mean belongs to.
        """
        found = {}
        for key, shown in self._fields.items():
            name, what = key.rsplit("/", 1)
            if (count := self._counts[name]) > 0:
                found[shown] = totals[key] / count
            elif what == "loss" and not math.isfinite(totals[key]):
                found[shown] = totals[key]
            elif what == "loss" and totals[key] != 0:
                raise UserError(
                    f"objective '{name}' has a loss of {totals[key]:.4g} over no terms: its count() has "
                    "found none in these batches; it has to count the terms that forward() sums, by which "
                    "the trainer divides"
                ).everywhere()
        return found

    def _compare_ranks(self, windows: list[Window], steps: int) -> dict[str, Any]:
        """Finds the slowest rank, and warns if it has been the same one for long; empty for a single rank."""
        if self.world.size == 1:
            return {}
        slowest = find_slowest(
            [window.waited_s / steps for window in windows],
            [window.worked_s / steps for window in windows],
            self._hosts,
        )
        warning = self._watch.see(slowest)
        if warning and self.world.is_main:
            log.warning(warning)
        return {
            "rank_seconds/median": slowest.median,
            "rank_seconds/slowest": slowest.seconds,
            "slowest_rank": slowest.rank,
            "slowest_host": slowest.host,
            "slowest_in": slowest.cause,
        }

    def _reset(self) -> None:
        """Starts the next record."""
        for value in self._sums.values():
            value.zero_()
        self._counts, self._window, self._norms, self._numbers = Counter(), Window(), {}, {}
        self._since, self._paused_s = time.perf_counter(), 0.0


def device_behind(device: torch.device) -> dict[str, float]:
    """Returns how long a GPU takes to finish what the host has queued, as a field; nothing for a CPU."""
    if device.type != "cuda":
        return {}
    reached = time.perf_counter()
    torch.cuda.synchronize(device)
    return {"device_behind_s": time.perf_counter() - reached}


def peak_memory(device: torch.device) -> int:
    """Returns the peak of allocated bytes: a GPU's since the last call, a CPU process's since its start."""
    if device.type != "cuda":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
