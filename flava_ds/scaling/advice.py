"""Which settings would help a plan, found by planning again with each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flava_ds.errors import ConfigError
from flava_ds.scaling import memory
from flava_ds.scaling.assumptions import BETTER, MIDDLE, WORSE
from flava_ds.scaling.hardware import GIB, GPUS, NETWORKS
from flava_ds.scaling.plan import Estimate, Figures, Plan, Setting, forecast, gib, with_zero
from flava_ds.scaling.work import Amount, ModelWork

Recompute = Callable[[bool], ModelWork]
"""Measures the model again with activation checkpointing on or off."""


WORTH_IT = 0.002
"""A smaller gain is not worth a line."""


@dataclass(frozen=True)
class Advice:
    """One change, the option that makes it, and what it gains."""

    what: str
    option: str
    gain: Estimate
    """Relative gain in samples per second, 0.1 is a tenth more. Its range compares both runs at the worse and
    at the better end of the assumptions."""
    memory_gib: float
    """Change of the peak, in GiB."""
    changes_training: bool
    """Whether the run would learn something else: another batch, for instance."""


def advise(plan: Plan, recompute: Recompute, most: int = 3) -> list[Advice]:
    """Returns the changes that gain most and fit, the best first."""
    found: list[tuple[float, str, str, Setting, bool, Figures]] = []
    for what, option, setting, changes_training in changes(plan.setting, recompute):
        other = forecast(setting)
        if other.peak.total > plan.capacity or setting.host_bytes > setting.host_capacity:
            continue
        gain = other.samples_per_second / plan.middle.samples_per_second - 1
        found.append((gain, what, option, setting, changes_training, other))
    best: dict[str, tuple[float, str, str, Setting, bool, Figures]] = {}
    for each in sorted(found, key=lambda each: -round(each[0], 3)):  # of equal gains, the smaller change
        best.setdefault(each[2].split()[0], each)
    return [
        Advice(what, option, with_ends(plan, gain, setting), gib_more(plan, other), changes_training)
        for gain, what, option, setting, changes_training, other in best.values()
        if gain > WORTH_IT
    ][:most]


def with_ends(plan: Plan, gain: float, setting: Setting) -> Estimate:
    """Returns a gain with its range: both runs at the worse, and both at the better end."""
    ends = [
        forecast(setting, assumed).samples_per_second / before.samples_per_second - 1
        for assumed, before in ((WORSE, plan.worse), (BETTER, plan.better))
    ]
    return Estimate(min(gain, *ends), gain, max(gain, *ends))


def gib_more(plan: Plan, other: Figures) -> float:
    """Returns what a change adds to the peak, in GiB."""
    return (other.peak.total - plan.middle.peak.total) / GIB


def changes(setting: Setting, recompute: Recompute) -> Iterator[tuple[str, str, Setting, bool]]:
    """Yields (what, option, setting, whether it changes the training) of every change worth a try."""
    zero = setting.zero
    for bucket in (25_000_000, 50_000_000):
        if zero.stage > 0 and bucket < zero.bucket:
            what = f"smaller gradient buckets, {bucket:,} elements"
            option = f"reduce_bucket_size {bucket} in a copy of the DeepSpeed JSON"
            yield what, option, with_zero(setting, bucket=bucket), False
    for stage in (1, 2, 3):
        if stage != zero.stage and zero.precision != "fp32" and not zero.offload:
            option = f"--engine.deepspeed-config zero{stage}"
            yield f"ZeRO-{stage}", option, with_zero(setting, stage=stage), False
    if zero.offload:
        option = f"--engine.deepspeed-config zero{zero.stage}"
        yield "optimizer on the device", option, with_zero(setting, offload=False), False
    if zero.accumulation > 1:
        option = "--training.gradient-accumulation-steps 1"
        yield "no accumulation", option, with_zero(setting, accumulation=1), False
    if setting.checkpointing:
        option = "--training.no-activation-checkpointing"
        other = replace(setting, model=recompute(False), checkpointing=False)
        yield "activations kept", option, other, False
    for workers in (2 * setting.workers, 4 * setting.workers):
        option = f"--data.num-workers {workers}"
        yield f"{workers} loader processes per rank", option, replace(setting, workers=workers), False
    if setting.model.codebook:
        option = "flava-ds codebook encode, then --data.sources.NAME.image-codes-key codes.npy"
        yield (
            "image codes stored in the shards, which needs pictures without augmentation",
            option,
            _without_codebook(setting),
            True,
        )
    double = {name: 2 * size for name, size in setting.global_batches.items()}
    option = batch_options(double, setting.own_batches)
    yield "twice the global batch", option, replace(setting, global_batches=double), True
    if setting.cluster.nodes > 1:
        best = max(NETWORKS.values(), key=lambda network: network.node)
        if best.node > setting.cluster.network.node:
            cluster = replace(setting.cluster, network=best)
            yield (
                f"another network: {best.title}",
                f"--network {best.name}",
                replace(setting, cluster=cluster),
                False,
            )


def batch_options(sizes: Mapping[str, int], own: Sequence[str]) -> str:
    """Returns the options that give sources these batches; the sources in `own` do not follow training's."""
    common = {f"--training.global-batch-size {size}": None for name, size in sizes.items() if name not in own}
    return " ".join([*common, *(f"--data.sources.{name}.global-batch-size {sizes[name]}" for name in own)])


def _without_codebook(setting: Setting) -> Setting:
    """Returns the setting with codes that come with the data."""
    kinds = {name: replace(work, codebook_flops=Amount()) for name, work in setting.model.kinds.items()}
    return replace(setting, model=replace(setting.model, codebook=0, kinds=kinds))


def nearest_that_fits(setting: Setting, recompute: Recompute) -> tuple[str, str] | None:
    """Returns (what, options) of the mildest change that makes the run fit its GPUs; None without one."""
    need = memory.capacity(setting.cluster.gpu)

    def fits(other: Setting) -> bool:
        return other.host_bytes <= other.host_capacity and forecast(other, MIDDLE).peak.total <= need

    smallest = min(setting.micro_batches.values())
    accumulations = [2**k for k in range(1, 12) if 2**k <= smallest and smallest % 2**k == 0]
    for checkpointing in (True,) if setting.checkpointing else (False, True):
        added = checkpointing != setting.checkpointing
        model = recompute(checkpointing) if added else setting.model
        base = replace(setting, model=model, checkpointing=checkpointing)
        words = "--training.activation-checkpointing" if added else ""
        for stage, offload in _stages(setting):
            file = f"zero{stage}_offload" if offload else f"zero{stage}"
            same = stage == setting.zero.stage and offload == setting.zero.offload
            named = " ".join(filter(None, (words, "" if same else f"--engine.deepspeed-config {file}")))
            for turns in (1, *accumulations):
                other = with_zero(
                    base, stage=stage, offload=offload, accumulation=setting.zero.accumulation * turns
                )
                if fits(other):
                    more = (
                        f"--training.gradient-accumulation-steps {other.zero.accumulation}"
                        if turns > 1
                        else ""
                    )
                    options = " ".join(filter(None, (named, more)))
                    return f"a peak of {gib(forecast(other).peak.total)}", options
    return None


def _stages(setting: Setting) -> list[tuple[int, bool]]:
    """Lists (stage, offload) from the current one on, each leaner than the one before."""
    ladder = [(1, False), (2, False), (3, False), (1, True), (2, True), (3, True)]
    now = (setting.zero.stage, setting.zero.offload)
    if setting.zero.precision == "fp32" and setting.zero.stage == 0:
        return [now, *ladder]
    return ladder[ladder.index(now) :]


def refuse_if_it_fits_nowhere(plan: Plan, recompute: Recompute) -> str:
    """Returns what to change so that a plan that does not fit would, or "" if it fits.

    Raises: ConfigError when no setting makes it fit, with the nearest GPU or size that does.
    """
    short_of_host = plan.setting.host_bytes > plan.setting.host_capacity
    if plan.middle.peak.total <= plan.capacity and not short_of_host:
        return ""
    if (found := nearest_that_fits(plan.setting, recompute)) is not None:
        what, options = found
        return f"{options} would fit, with {what}"
    cluster, need = plan.setting.cluster, forecast(plan.setting, BETTER).peak.total
    lean = _leanest(plan.setting, recompute)
    for gpu in sorted(GPUS.values(), key=lambda gpu: (gpu.memory_gib, gpu.host_gib)):
        more = gpu.memory_gib > cluster.gpu.memory_gib or gpu.host_gib > cluster.gpu.host_gib
        other = replace(plan.setting, cluster=replace(cluster, gpu=gpu))
        if more and nearest_that_fits(other, recompute):
            raise ConfigError(
                f"{plan.setting.model.recipe} fits no setting on {cluster.gpus} x {cluster.gpu.name} (it "
                f"needs {gib(need)} as it is{_short_of_host(lean)}); the nearest GPU that takes it is --gpu "
                f"{gpu.name}, with {gpu.memory_gib:g} GiB and {gpu.host_gib:g} GiB of host memory"
            )
    raise ConfigError(
        f"{plan.setting.model.recipe} fits no GPU that is known, in no setting: its "
        f"{plan.setting.model.trainable / 1e9:.1f} G trainable parameters on {cluster.gpus} GPUs need at "
        f"least {gib(forecast(lean).peak.total)} each, and {gib(lean.host_bytes)} of each machine's "
        f"{gib(lean.host_capacity)}; about {_largest_parameters(lean) / 1e9:.1f} G would fit "
        f"{cluster.gpu.name}"
    )


def _short_of_host(lean: Setting) -> str:
    """Returns words for a setting that is offloaded and takes more host memory than there is."""
    if lean.host_bytes <= lean.host_capacity:
        return ""
    return (
        f", and offloaded {gib(lean.host_bytes)} of each machine's {gib(lean.host_capacity)} of host memory"
    )


def _leanest(setting: Setting, recompute: Recompute) -> Setting:
    """Returns the setting that takes least memory: everything sharded and offloaded, one sample at a time."""
    lean = with_zero(setting, stage=3, offload=True)
    return replace(
        lean,
        model=recompute(True),
        checkpointing=True,
        global_batches=dict.fromkeys(
            setting.global_batches, setting.cluster.gpus * setting.zero.accumulation
        ),
    )


def _largest_parameters(lean: Setting) -> float:
    """Returns about how many parameters a model of this shape may have; memory grows in proportion."""
    overhead = MIDDLE.context_gib * GIB
    grows = forecast(lean).peak.total - overhead
    room = (memory.capacity(lean.cluster.gpu) - overhead) / grows
    return lean.model.trainable * min(room, lean.host_capacity / lean.host_bytes)
