"""Tunes a run on the machine at hand: takes real steps with other settings, one setting after the other.

Every trial is processes of its own (trial.py), so running out of memory ends no more than the trial. A value
is kept if it makes the mean step at least 2 % shorter, or trains at all where the others do not fit; the next
setting is tried on top of it. What other work on the machine does to a step is no gain: before a value is
kept, the best so far and it are measured again in turn, and of each the shortest time counts. None of them
changes what a run learns: global batches stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flava_ds.config import Config, dumps
from flava_ds.config.plain_files import loads
from flava_ds.errors import ConfigError, number_of
from flava_ds.ranks.endings import is_stop, last_words, output_lines, signal_of
from flava_ds.ranks.launch import plan_launch
from flava_ds.recipes import resolve
from flava_ds.scaling.facts import shares_of
from flava_ds.storage.atomic import write_json
from flava_ds.training.engine_config import read_settings
from flava_ds.watching.environment import git_state

MODULE = "flava_ds.autotuning.trial"
GAIN = 0.02
"""Share of the step below which a difference counts as noise."""
ACCUMULATION = (1, 2, 4, 8, 16)
BUCKETS = (25_000_000, 100_000_000, 500_000_000)
"""Elements of a bucket in which gradients are reduced."""
OUT_OF_MEMORY = "out of memory"


class StoppedError(Exception):
    """A signal has ended a trial, so no further one begins."""

    def __init__(self, status: int) -> None:
        super().__init__(f"stopped by signal {status - 128}")
        self.status = status


@dataclass(frozen=True)
class Choice:
    """One value of a setting, as options of a run."""

    title: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """What came of a configuration with some choices, by setting; a missing one is as configured."""

    choices: Mapping[str, Choice]
    times_ms: tuple[float, ...] = ()
    """The mean step over the run's sources in each measurement; none if the trial failed."""
    peak_memory_gib: float | None = None
    reason: str = ""
    """Why it failed."""

    @property
    def step_ms(self) -> float | None:
        """The mean step, disturbed least; None if the trial failed."""
        return min(self.times_ms, default=None)

    @property
    def words(self) -> list[str]:
        """The options that a run needs for it."""
        return [word for choice in self.choices.values() for word in choice.words]

    @property
    def title(self) -> str:
        """What differs from the configuration."""
        return ", ".join(choice.title for choice in self.choices.values()) or "as configured"


@dataclass(frozen=True)
class Tuner:
    """A recipe and its options, tried on `ranks` ranks of this machine. Files are kept in `folder`."""

    recipe: str
    overrides: Sequence[str]
    plugins: Sequence[str]
    ranks: int
    gpus: int
    device: str
    """What the machine computes with. Results count for it, the configuration and the commit alone."""
    folder: Path

    def config(self, choices: Mapping[str, Choice] | None = None) -> Config:
        """Resolves the recipe with choices. Raises: ConfigError for values that do not fit together."""
        return resolve(self.recipe, [*self.overrides, *Trial(choices or {}).words])

    def search(self) -> Iterator[Trial]:
        """Yields trials as they end: the configuration first, then every setting on top of the best so far.
        One that is measured again comes again.

        Raises: ConfigError if the configuration does not train for another reason than memory; StoppedError
        when a signal ends a trial.
        """
        first = best = self.measure({})
        yield first
        if first.step_ms is None and first.reason != OUT_OF_MEMORY:
            raise ConfigError(f"{self.recipe} does not train here as it is configured: {first.reason}")
        for name, values in SETTINGS:
            for choice in values(self, self.config(best.choices)):
                trial = self.measure({**best.choices, name: choice})
                yield trial
                if better(best, trial) is trial and best.times_ms:
                    yield (best := self.again(best))
                    first = first if best.choices else best
                    yield (trial := self.again(trial))
                best = better(best, trial)
        if best.choices and first.times_ms:  # under the same load, for what the gain is
            yield self.again(first)
            yield self.again(best)

    def again(self, trial: Trial) -> Trial:
        """Measures a trial once more; one that fails now has failed. Raises: StoppedError."""
        other = self.measure(trial.choices, len(trial.times_ms))
        return replace(other, times_ms=(*trial.times_ms, *other.times_ms) if other.times_ms else ())

    def measure(self, choices: Mapping[str, Choice], before: int = 0) -> Trial:
        """Runs a trial that was measured `before` times, unless its result is there from before.

        Raises: StoppedError.
        """
        words, config = [*self.overrides, *Trial(choices).words], self.config(choices)
        told = json.dumps([dumps(config), self.ranks, self.device, git_state(), *[before] * (before > 0)])
        name = hashlib.sha256(told.encode()).hexdigest()[:10]
        file, log, run = (self.folder / f"{name}{suffix}" for suffix in (".json", ".log", ""))
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            plugins = [f"--plugin={place}" for place in self.plugins]
            place = ["--logging.run-directory", str(self.folder), "--name", name]
            launch = plan_launch(
                str(file), [*plugins, self.recipe, *words, *place],
                ranks=self.ranks, gpus=self.gpus, module=MODULE,
            )  # fmt: skip
            log.unlink(missing_ok=True)
            status = launch.wait(log)
            shutil.rmtree(run, ignore_errors=True)
            if is_stop(status):
                raise StoppedError(status)
            if status:
                said = last_words(output_lines(log)) or f"exit status {status}"
                # the kernel kills a process when the host's memory runs out
                lost = signal_of(status) == signal.SIGKILL or "ran out of memory" in said
                return Trial(choices, reason=OUT_OF_MEMORY if lost else said)
        found = read_trial(file)
        return Trial(choices, (step_ms(found["steps"], shares_of(config)),), found["peak_memory_gib"])


def better(best: Trial, trial: Trial) -> Trial:
    """Returns the trial if it is clearly faster than the best one, or that has failed."""
    if trial.step_ms is None:
        return best
    return trial if best.step_ms is None or trial.step_ms < (1 - GAIN) * best.step_ms else best


def read_trial(file: Path) -> dict[str, Any]:
    """Reads what a trial wrote. Raises: ConfigError naming the file."""
    try:
        found = dict(loads(file.read_bytes()))
        steps = [(str(source), float(taken)) for source, taken in found["steps"]]
        if not steps or not all(0 < taken < math.inf for _, taken in steps):
            raise ValueError(f"steps took {[taken for _, taken in steps]!r:.60} seconds")
        return {"steps": steps, "peak_memory_gib": float(found["peak_memory_gib"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: no result of a trial ({error}); delete it to run it again") from error


def step_ms(steps: Sequence[tuple[str, float]], shares: Mapping[str, float]) -> float:
    """Returns the mean step over the sources' shares, from the median of each source but its first step.

    A source with a single step counts with that; one without steps not at all.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for source, taken in steps:
        seconds[source].append(taken)
    medians = {source: statistics.median(taken[1:] or taken) for source, taken in seconds.items()}
    total = sum(shares[source] for source in medians)
    return 1e3 * sum(shares[source] * median for source, median in medians.items()) / total


def micro_batches(tuner: Tuner, config: Config) -> Iterator[Choice]:
    """Other numbers of micro-steps over which every source's batch divides."""
    for steps in ACCUMULATION:
        changed = ("--training.gradient-accumulation-steps", str(steps))
        try:
            other = resolve(tuner.recipe, [*tuner.overrides, *changed])
            sizes = [other.micro_batch_size(name, tuner.ranks) for name in other.drawn_sources]
        except ConfigError:
            continue
        if steps != config.training.gradient_accumulation_steps:
            yield Choice(f"micro-batches of {' or '.join(map(str, sorted(set(sizes))))}", changed)


def recomputation(tuner: Tuner, config: Config) -> Iterator[Choice]:
    """Activations kept, recomputed but for the blocks' inputs, or GELU recomputed alone."""
    training = config.training
    for title, blocks, gelu in (
        ("activations kept", False, False),
        ("GELU recomputed", False, True),
        ("activations recomputed", True, False),
    ):
        if (blocks, gelu) != (training.activation_checkpointing, training.recompute_gelu):
            yield Choice(
                title,
                (
                    f"--training.{'' if blocks else 'no-'}activation-checkpointing",
                    f"--training.{'' if gelu else 'no-'}recompute-gelu",
                ),
            )


def zero_stages(tuner: Tuner, config: Config) -> Iterator[Choice]:
    """The other shipped ZeRO stages, and a step without hooks on parameters; one rank has nothing to divide,
    and stage 0 is refused but in fp32.
    """
    settings, _ = read_settings(config.engine.deepspeed_config)
    least = 0 if config.training.precision == "fp32" else 1
    for stage in range(least, 4):
        if stage != settings["zero_optimization"]["stage"] and tuner.ranks > 1:
            yield Choice(f"zero{stage}", ("--engine.deepspeed-config", f"zero{stage}"))
    other = {"zero1": "zero1_no_overlap", "zero1_no_overlap": "zero1"}.get(config.engine.deepspeed_config)
    if other is not None:
        yield Choice(other, ("--engine.deepspeed-config", other))


def buckets(tuner: Tuner, config: Config) -> Iterator[Choice]:
    """Other sizes of the buckets of gradients, in a DeepSpeed JSON of their own."""
    settings, path = read_settings(config.engine.deepspeed_config)
    zero = settings["zero_optimization"]
    if tuner.ranks == 1 or zero["stage"] == 0:
        return
    for elements in BUCKETS:
        if elements != zero.get("reduce_bucket_size"):
            stem = Path(path).stem
            file = tuner.folder / f"{stem}_buckets_{elements // 10**6}m.json"
            changed = settings | {"zero_optimization": zero | {"reduce_bucket_size": elements}}
            write_json(file, changed)
            title = f"{stem} with buckets of {elements // 10**6} M"
            yield Choice(title, ("--engine.deepspeed-config", str(file)))


def workers(tuner: Tuner, config: Config) -> Iterator[Choice]:
    """Half and twice as many loader processes, as far as there are cores for them."""
    now, cores = config.data.num_workers, len(os.sched_getaffinity(0))
    for number in sorted({max(1, now // 2), max(1, 2 * now)} - {now}):
        if number * tuner.ranks <= max(cores, tuner.ranks):
            yield Choice(f"{number_of(number, 'worker')}", ("--data.num-workers", str(number)))


SETTINGS: tuple[tuple[str, Callable[[Tuner, Config], Iterator[Choice]]], ...] = (
    ("micro-batch", micro_batches),
    ("recomputation", recomputation),
    ("ZeRO", zero_stages),
    ("ZeRO", buckets),
    ("workers", workers),
)
"""What is tried, in this order. A file with other buckets takes the place of a ZeRO stage's own."""
