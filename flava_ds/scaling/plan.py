"""Puts work, hardware and settings together: memory, time, rates and cost of a run, each with its range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flava_ds.scaling import memory
from flava_ds.scaling.assumptions import BETTER, MIDDLE, WORSE, Assumptions
from flava_ds.scaling.calibration import Calibration
from flava_ds.scaling.hardware import GIB, Cluster
from flava_ds.scaling.step_time import PARTS, KindTime, kind_time
from flava_ds.scaling.work import ModelWork
from flava_ds.scaling.zero import Zero

LOADER = "waiting for the loader"


@dataclass(frozen=True)
class Setting:
    """Everything about a run that a plan may change without measuring the model again."""

    model: ModelWork
    cluster: Cluster
    zero: Zero
    global_batches: Mapping[str, int]
    """Samples of an optimizer step by source, over all ranks."""
    shares: Mapping[str, float]
    """Share of the steps by source; they add up to 1."""
    total_steps: int
    workers: int
    """Loader processes of a rank."""
    objectives: int
    checkpointing: bool
    calibration: Calibration | None = None
    """What real steps on such a machine have shown."""
    own_batches: tuple[str, ...] = ()
    """The sources whose batch is their own; that of the others is training.global_batch_size."""

    def samples(self, source: str) -> int:
        """Samples of a micro-batch on one rank."""
        return max(1, self.global_batches[source] // (self.cluster.gpus * self.zero.accumulation))

    def flops(self, source: str, real: bool) -> float:
        """FLOPs of a rank's step: the model's alone, or all that are really done."""
        work, samples, turns = self.model.kinds[source], self.samples(source), self.zero.accumulation
        amount = work.flops() if real else work.model_flops
        extra = work.codebook_flops.at(samples) if real else 0.0
        return turns * (amount.at(samples, samples * self.cluster.gpus * turns) + extra)

    def mean(self, value: Callable[[str], float]) -> float:
        """Returns the mean of a number by source over all steps."""
        return sum(share * value(source) for source, share in self.shares.items())

    @property
    def host_bytes(self) -> float:
        """Host memory that a machine's ranks take for what they offload."""
        return self.cluster.per_node * memory.host_states(self.model, self.zero, self.cluster.gpus)

    @property
    def host_capacity(self) -> float:
        """Host memory that a usual machine with so many of these GPUs has, in bytes."""
        return self.cluster.per_node * self.cluster.gpu.host_gib * GIB

    @property
    def reads_ahead(self) -> bool:
        """Whether loader processes work beside the ranks; on a CPU they need cores of their own for that."""
        rates = self.cluster.gpu.rates
        return rates is None or 0 < self.workers <= rates.cores / self.cluster.gpus - 1

    @property
    def micro_batches(self) -> dict[str, int]:
        """The same of every source."""
        return {source: self.samples(source) for source in self.model.kinds}


@dataclass(frozen=True)
class Estimate:
    """A number with the range that the assumptions leave it."""

    low: float
    middle: float
    high: float

    def text(self, digits: int = 3) -> str:
        """Writes it as 'middle (low to high)'."""
        low, middle, high = (shortened(value, digits) for value in (self.low, self.middle, self.high))
        return f"{middle} ({low} to {high})" if low != high else middle


def shortened(value: float, digits: int = 3) -> str:
    """Writes a number with some significant digits and thousands separators."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        scale = 10 ** max(0, len(str(int(abs(value)))) - digits)
        return f"{round(value / scale) * scale:,}"
    return f"{value:.{digits}g}"


@dataclass(frozen=True)
class Figures:
    """One forecast, under one set of assumptions."""

    times: Mapping[str, KindTime]
    """By source."""
    peak: memory.Moment
    largest: Mapping[str, int]
    """The largest micro-batch of each source that fits alone; 0 if none does."""
    parts: Mapping[str, float]
    """Mean ms of a step by part of step_time.PARTS, and what the loader adds."""
    step_ms: float
    samples_per_second: float
    mfu: float
    """Model FLOPs, without recomputation, over the peak."""
    hfu: float
    """FLOPs that the device really does, over the peak."""
    gpu_hours: float


def assumed_for(setting: Setting, assumed: Assumptions) -> Assumptions:
    """Returns the assumptions as a calibration, where there is one, changes them."""
    return setting.calibration.applied(assumed) if setting.calibration is not None else assumed


def times_of(setting: Setting, assumed: Assumptions = MIDDLE) -> dict[str, KindTime]:
    """Returns the time of a step of each source."""
    assumed = assumed_for(setting, assumed)
    return {
        source: kind_time(
            setting.model,
            source,
            setting.zero,
            setting.cluster,
            setting.samples(source),
            assumed,
            setting.objectives,
        )
        for source in setting.model.kinds
    }


def forecast(setting: Setting, assumed: Assumptions = MIDDLE) -> Figures:
    """Returns one forecast."""
    model, cluster, zero = setting.model, setting.cluster, setting.zero
    times = times_of(setting, assumed)
    assumed = assumed_for(setting, assumed)
    mean = setting.mean
    parts = {
        part: mean(lambda source, part=part: times[source].ms[part])  # type: ignore[misc]
        for part in PARTS
    }
    computing = sum(parts.values())
    loading = mean(lambda source: loader_ms(setting, source, assumed))
    parts[LOADER] = max(0.0, loading - computing) if setting.reads_ahead else loading
    step_ms = sum(parts.values())
    peak_flops = step_ms / 1e3 * cluster.gpu.flops
    return Figures(
        times=times,
        peak=memory.peak(model, zero, cluster.gpus, setting.micro_batches, assumed),
        largest={
            source: memory.largest_that_fits(model, source, zero, cluster.gpus, cluster.gpu, assumed)
            for source in model.kinds
        },
        parts=parts,
        step_ms=step_ms,
        samples_per_second=mean(lambda source: setting.global_batches[source]) / step_ms * 1e3,
        mfu=mean(lambda source: setting.flops(source, real=False)) / peak_flops,
        hfu=mean(lambda source: setting.flops(source, real=True)) / peak_flops,
        gpu_hours=setting.total_steps * step_ms / 3.6e6 * cluster.gpus,
    )


def loader_ms(setting: Setting, source: str, assumed: Assumptions) -> float:
    """Returns the time that a rank's loader processes take for the pictures of one step.

    They read ahead, so only the mean over all kinds of step must keep up.
    """
    rates, workers = setting.cluster.gpu.rates, max(1, setting.workers)
    samples = setting.samples(source) * setting.zero.accumulation
    if rates is not None:
        return 1e3 * samples * rates.loader[source] / workers
    if not setting.model.kinds[source].has_pictures:
        return 0.0
    return 1e3 * samples / (workers * assumed.loader_rate)


@dataclass(frozen=True)
class Plan:
    """A setting with its forecast at the middle, the worse and the better end of the assumptions."""

    setting: Setting
    middle: Figures
    worse: Figures
    better: Figures

    def estimate(self, value: Callable[[Figures], float]) -> Estimate:
        """Returns a number of the forecast with its range."""
        low, high = sorted((value(self.worse), value(self.better)))
        middle = value(self.middle)
        return Estimate(min(low, middle), middle, max(high, middle))

    @property
    def capacity(self) -> float:
        """Bytes of a GPU that the run can use."""
        return memory.capacity(self.setting.cluster.gpu)

    @property
    def fits(self) -> str:
        """ "yes", "no", or "perhaps" if it depends on the assumptions."""
        if self.setting.host_bytes > self.setting.host_capacity:
            return "no"
        if self.worse.peak.total <= self.capacity:
            return "yes"
        return "perhaps" if self.better.peak.total <= self.capacity else "no"

    @property
    def bottleneck(self) -> str:
        """The part of the step that takes longest."""
        return max(self.middle.parts, key=lambda part: self.middle.parts[part])


def plan(setting: Setting) -> Plan:
    """Returns the plan of a setting."""
    return Plan(setting, forecast(setting), forecast(setting, WORSE), forecast(setting, BETTER))


def gib(size: float) -> str:
    """Writes bytes as GiB."""
    return f"{size / GIB:.1f} GiB"


def with_zero(setting: Setting, **changes: object) -> Setting:
    """Returns a setting with other ZeRO settings."""
    return replace(setting, zero=replace(setting.zero, **changes))  # type: ignore[arg-type]
