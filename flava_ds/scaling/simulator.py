"""Simulates a run on a cluster event by event: steps, checkpoints, failures and restarts, and slow loaders.

The event queue is a heap of (time, number, event). A simulation library (SimPy) would run each rank as a
coroutine; here ranks are equal but for the slowest of each step, so steps need no event of each rank, and
16,384 GPUs cost no more than one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flava_ds.scaling.assumptions import MIDDLE, Assumptions
from flava_ds.scaling.failures import RATES, Rate, Recovery, best_interval
from flava_ds.scaling.plan import LOADER, Setting, loader_ms, times_of
from flava_ds.scaling.step_time import COMMUNICATION

CHUNK = 512
"""Steps that one event stands for at most; a failure or checkpoint within them cuts it."""
CAUSES = (
    "computing",
    "waiting for the host",
    "stragglers",
    "communication",
    "optimizer",
    "loader",
    "checkpoints",
    "lost work",
    "detection and restart",
)


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step of one source by cause, without what varies."""

    share: float
    seconds: Mapping[str, float]
    spread: float
    """Standard deviation of a rank's computing in a step, relative: texts of other lengths."""


@dataclass(frozen=True)
class Run:
    """A run to simulate."""

    steps: int
    costs: Sequence[StepCost]
    ranks: int
    nodes: float
    """Nodes of 8 GPUs, which failures are counted by."""
    recovery: Recovery
    rate: Rate = RATES["llama3"]
    interval: float | None = None
    """Seconds between checkpoints; None takes Daly's."""
    pictures_per_second: float = math.inf
    """Of all loader processes of a rank."""
    pictures_per_step: float = 0.0
    """Of one rank, on average over kinds."""
    stalls: float = 0.02
    """Relative standard deviation of the loader's rate from step to step."""
    failures: Sequence[float] = ()
    """Seconds from the start at which it fails; then `rate` does not count."""


@dataclass
class Outcome:
    """What became of the wall time, in seconds by cause of CAUSES."""

    wall: float = 0.0
    steps: int = 0
    failures: int = 0
    checkpoints: int = 0
    lost: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))

    @property
    def useful(self) -> float:
        """Share of the wall time that went into steps that were kept."""
        kept = (
            self.wall - self.lost["checkpoints"] - self.lost["lost work"] - self.lost["detection and restart"]
        )
        return kept / self.wall if self.wall else 0.0


class Simulator:
    """Runs the events of one run; the same seed gives the same outcome."""

    def __init__(self, run: Run, seed: int = 0) -> None:
        self.run, self.random = run, np.random.default_rng(seed)
        self.chance = np.random.default_rng((seed, 1))
        """Draws failures alone, so that faster and slower steps meet the same luck."""
        self.outcome = Outcome()
        per_second = run.rate.per_second(run.nodes)
        self.mean_time = 1 / per_second if per_second else math.inf
        self.interval = run.interval or best_interval(run.recovery, self.mean_time)
        self.queue: list[tuple[float, int, str]] = []
        self._number = 0
        self.kept = 0
        """Steps on disk."""
        self.writing: tuple[float, int] | None = None
        """When the checkpoint under way is on disk, and its step."""
        self.since: list[tuple[int, dict[str, float]]] = []
        """Pieces of work, each with its last step, that are not on disk yet."""

    def simulate(self) -> Outcome:
        """Runs to the last step and returns where the time went."""
        self._plan_failure(0.0)
        self._push(min(self.interval, 1e18), "checkpoint")
        now = 0.0
        while self.outcome.steps < self.run.steps:
            when, _, event = heapq.heappop(self.queue)
            now = self._train(now, when, finish=event == "checkpoint")
            if self.outcome.steps >= self.run.steps:
                break
            if event == "checkpoint":
                now = self._checkpoint(max(now, when))
            else:
                now = self._fail(max(now, when))
        self.outcome.wall = now
        for _, piece in self.since:
            self._keep(piece)
        self.outcome.lost = {cause: float(value) for cause, value in self.outcome.lost.items()}
        return self.outcome

    def _push(self, when: float, event: str) -> None:
        self._number += 1
        heapq.heappush(self.queue, (when, self._number, event))

    def _plan_failure(self, now: float) -> None:
        if self.run.failures:
            for when in sorted(when for when in self.run.failures if when > now)[:1]:
                self._push(when, "failure")
        elif not math.isinf(self.mean_time):
            self._push(now + self.chance.exponential(self.mean_time), "failure")

    def _train(self, now: float, until: float, *, finish: bool) -> float:
        """Takes steps from `now` to the next event, and returns the time.

        A checkpoint waits for the step to `finish`; a failure loses it.
        """
        while now < until and self.outcome.steps < self.run.steps:
            count = min(CHUNK, self.run.steps - self.outcome.steps)
            causes = self._steps(count)
            length = sum(causes.values())
            places = count * (until - now) / length
            fitting = min(count, math.ceil(places) if finish else int(places))
            piece = {cause: value * fitting / count for cause, value in causes.items()}
            self.outcome.steps += fitting
            self.since.append((self.outcome.steps, piece))
            now += length * fitting / count
            if not finish and fitting < count:
                self.outcome.lost["lost work"] += until - now
                return until
        return now

    def _steps(self, count: int) -> dict[str, float]:
        """Returns the time of `count` steps by cause."""
        found = dict.fromkeys(CAUSES, 0.0)
        draws = self.random.multinomial(count, [cost.share for cost in self.run.costs])
        for cost, drawn in zip(self.run.costs, draws, strict=True):
            for cause, seconds in cost.seconds.items():
                found[cause] += seconds * drawn
            if drawn and self.run.ranks > 1 and cost.spread:
                computing = cost.seconds["computing"] + cost.seconds["waiting for the host"]
                found["stragglers"] += computing * self._slowest(cost.spread, int(drawn))
        if self.run.pictures_per_step and not math.isinf(self.run.pictures_per_second):
            needed = count * self.run.pictures_per_step / self.run.pictures_per_second
            needed *= 1 + self.run.stalls * self.random.standard_normal() / math.sqrt(count)
            found["loader"] = max(0.0, needed - sum(found.values()))
        return found

    def _slowest(self, spread: float, steps: int) -> float:
        """Returns how much longer than the mean the slowest rank computes, relative, summed over steps.

        The largest of n normal numbers, drawn by its distribution function, so that ranks cost nothing.
        """
        uniform = self.random.random(steps) ** (1 / self.run.ranks)
        return float(spread * np.sum(normal_quantile(np.minimum(uniform, 1 - 1e-15))))

    def _checkpoint(self, now: float) -> float:
        """Stands for the copy; the bytes are on disk later, unless a failure comes first."""
        self._settle(now)
        self.outcome.checkpoints += 1
        self.outcome.lost["checkpoints"] += self.run.recovery.cost
        now += self.run.recovery.cost
        self.writing = (now + self.run.recovery.writes, self.outcome.steps)
        self._push(now + self.interval, "checkpoint")
        return now

    def _settle(self, now: float) -> None:
        """Takes note of a checkpoint that has reached the disk."""
        if self.writing is None or self.writing[0] > now:
            return
        self.kept, self.writing = self.writing[1], None
        for step, piece in self.since:
            if step <= self.kept:
                self._keep(piece)
        self.since = [(step, piece) for step, piece in self.since if step > self.kept]

    def _keep(self, piece: Mapping[str, float]) -> None:
        for cause, value in piece.items():
            self.outcome.lost[cause] += value

    def _fail(self, now: float) -> float:
        """Loses the work since the last checkpoint on disk, waits, and starts again."""
        self._settle(now)
        self.outcome.failures += 1
        self.outcome.lost["lost work"] += sum(sum(piece.values()) for _, piece in self.since)
        self.since, self.writing = [], None
        self.outcome.steps = self.kept
        pause = self.run.recovery.restart + self.run.recovery.detection * self.chance.random()
        self.outcome.lost["detection and restart"] += pause
        self.queue = []
        now += pause
        self._push(now + self.interval, "checkpoint")
        self._plan_failure(now)
        return now


def normal_quantile(p: np.ndarray) -> np.ndarray:
    """Returns the standard normal quantile, to about 5e-4. Source: Abramowitz and Stegun, formula 26.2.23."""
    tail = np.minimum(p, 1 - p)
    t = np.sqrt(-2 * np.log(np.maximum(tail, 1e-300)))
    value = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (
        1 + t * (1.432788 + t * (0.189269 + t * 0.001308))
    )
    return np.where(p < 0.5, -value, value)


def run_of(setting: Setting, recovery: Recovery, rate: Rate, assumed: Assumptions = MIDDLE) -> Run:
    """Returns the run that a plan's setting describes, step costs by the planner."""
    costs = []
    for source, time in times_of(setting, assumed).items():
        work = setting.model.kinds[source]
        seconds = dict.fromkeys(CAUSES, 0.0)
        for part, ms in time.ms.items():
            seconds[_cause(part)] += ms / 1e3
        seconds["stragglers"] = 0.0  # drawn
        if not setting.reads_ahead:
            seconds["loader"] = loader_ms(setting, source, assumed) / 1e3
        samples = setting.samples(source) * setting.zero.accumulation
        spread = work.token_share * work.length_deviation / math.sqrt(samples)
        costs.append(StepCost(setting.shares[source], seconds, spread))
    pictures = sum(
        share * setting.samples(s) * setting.zero.accumulation
        for s, share in setting.shares.items()
        if setting.model.kinds[s].has_pictures
    )
    loading = setting.mean(lambda source: loader_ms(setting, source, assumed)) / 1e3
    return Run(
        steps=setting.total_steps,
        costs=costs,
        ranks=setting.cluster.gpus,
        nodes=setting.cluster.gpus / 8,
        recovery=recovery,
        rate=rate,
        pictures_per_second=pictures / loading if loading else math.inf,
        pictures_per_step=pictures if setting.reads_ahead else 0.0,
    )


def _cause(part: str) -> str:
    """Returns the cause that a part of a step counts for."""
    if part in COMMUNICATION:
        return "communication"
    if part == LOADER:
        return "loader"
    return part if part in CAUSES else "computing"


def recovery_of(setting: Setting, assumed: Assumptions = MIDDLE) -> Recovery:
    """Returns what checkpoints and failures cost: 12 bytes for each parameter with Adam, over all nodes."""
    own = 4 * (1 + setting.model.moments) * setting.model.trainable / setting.cluster.gpus
    return Recovery(
        stands=0.05 + own / (1e9 * assumed.host_link_gb),
        writes=own * setting.cluster.per_node / (1e9 * assumed.checkpoint_gb),
        slower=assumed.checkpoint_slows,
        detection=assumed.detection_s,
        restart=assumed.restart_s,
    )


def scaled(setting: Setting, gpus: int, *, weak: bool) -> Setting | None:
    """Returns a setting on another number of GPUs, with the same batch (strong) or the same per GPU (weak).

    None where a global batch does not divide, or a GPU would get no sample.
    """
    before = setting.cluster.gpus
    per_node = min(8, gpus)
    if gpus % per_node:
        return None
    cluster = replace(setting.cluster, gpus=gpus, nodes=gpus // per_node)
    turns = setting.zero.accumulation
    batches = {name: size // before * gpus if weak else size for name, size in setting.global_batches.items()}
    if any(size % (gpus * turns) or size < gpus * turns for size in batches.values()):
        return None
    samples = sum(setting.shares[name] * size for name, size in setting.global_batches.items())
    now = sum(setting.shares[name] * size for name, size in batches.items())
    steps = max(1, round(setting.total_steps * samples / now))
    return replace(setting, cluster=cluster, global_batches=batches, total_steps=steps)
