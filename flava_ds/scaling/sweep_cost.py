"""What a sweep will take: its FLOPs by the planner's trace, and hours on GPUs or on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flava_ds.config import Config
from flava_ds.errors import number_of
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.facts import Facts, seen, shares_of, without
from flava_ds.scaling.hardware import Cluster
from flava_ds.scaling.measure import DTYPES, measure
from flava_ds.scaling.plan import Estimate, plan
from flava_ds.scaling.setting import setting_of
from flava_ds.scaling.work import ModelWork

CPU_SHARE = Estimate(0.05, 0.15, 0.35)
"""Share of a CPU's rate of matrix products that a run reaches: judgement; finished runs replace it."""

PRODUCT_EDGE = 768
"""Of the square matrices by which a CPU's rate is measured."""

VARIED = {
    "data": (
        "weight",
        "kind_weights",
        "weight_changes",
        "weigh_by_size",
        "global_batch_size",
        "seed",
        "shuffle",
    ),
    "training": ("total_steps", "global_batch_size", "gradient_clipping", "clip_each_parameter"),
    "optimizer": ("lr", "weight_decay", "weight_decay_end", "betas", "eps"),
}
"""Section -> fields that sweeps vary and that do not decide about the cost of a micro-step; those of data are
its sources' too.
"""

_TRACED: dict[str, ModelWork] = {}
"""What this process has traced, by all that decides about it."""


def works_of(configs: Mapping[str, Config]) -> dict[str, ModelWork]:
    """Returns the work of each run's steps; runs that differ in nothing that decides about it are traced
    once.
    """
    found = {}
    for name, config in configs.items():
        key = key_of(config)
        if key not in _TRACED:
            _TRACED[key] = measure(config, lengths_of(config, None))
        found[name] = _TRACED[key]
    return found


def key_of(config: Config) -> str:
    """Returns what decides about the cost of a micro-step: all but what surely does not, and sweeps vary."""
    plain = without(seen(config), ("seed",))
    for section, free in VARIED.items():
        plain[section] = without(plain[section], free)
    sources, objectives = plain["data"]["sources"], plain["objectives"]
    plain["data"]["sources"] = {name: without(sources[name], VARIED["data"]) for name in config.drawn_sources}
    plain["objectives"] = {name: own | {"weight": own["weight"] > 0} for name, own in objectives.items()}
    return json.dumps(plain, sort_keys=True)


def flops_of(config: Config, work: ModelWork) -> float:
    """Returns the model's FLOPs of a whole run, forward and backward."""
    each = sum(
        share * work.kinds[source].model_flops.at(config.global_batch_size(source))
        for source, share in shares_of(config).items()
    )
    return each * config.training.total_steps


def facts_of(config: Config, work: ModelWork) -> dict[str, Any]:
    """Returns what is known of a run before it runs; `batch` is its mean over the sources' steps."""
    batch = sum(share * config.global_batch_size(name) for name, share in shares_of(config).items())
    return {"parameters": work.trainable, "batch": batch, "planned_flops": flops_of(config, work)}


def on_gpus(configs: Mapping[str, Config], works: Mapping[str, ModelWork], cluster: Cluster) -> Estimate:
    """Forecasts the GPU-hours of runs, each on the whole cluster. Raises: ConfigError."""
    low = middle = high = 0.0
    for name, config in configs.items():
        made = plan(setting_of(Facts.of(config), cluster, lambda _, name=name: works[name]))  # type: ignore[misc]
        own = made.estimate(lambda figures: figures.gpu_hours)
        low, middle, high = low + own.low, middle + own.middle, high + own.high
    return Estimate(low, middle, high)


def cpu_rate(precision: str) -> float:
    """Measures the FLOP/s of matrix products on this machine's cores, in the precision of a run: processors
    with units for bf16 multiply many times as fast in it.
    """
    import torch
    from flava_kernels.bench.machine import gemm_rate

    return gemm_rate(torch.device("cpu"), DTYPES[precision], PRODUCT_EDGE)


def on_this_machine(flops: float, gemm_rate: float, finished: Mapping[str, float]) -> tuple[Estimate, str]:
    """Estimates hours on a CPU, by finished runs if there are any, and says by what.

    `finished` has flops and seconds of finished runs, in all.
    """
    if finished.get("flops", 0) > 0 and finished.get("seconds", 0) > 0:
        hours = flops / (finished["flops"] / finished["seconds"]) / 3600
        return Estimate(hours, hours, hours), "at the rate of the finished runs"
    hours = flops / gemm_rate / 3600
    found = Estimate(hours / CPU_SHARE.high, hours / CPU_SHARE.middle, hours / CPU_SHARE.low)
    rate = f"{gemm_rate / 1e9:.0f} GFLOP/s of its matrix products"
    return found, f"at {cpu_shares()} of the {rate}; starts and evaluations come on top"


def cpu_shares() -> str:
    """Writes the range of CPU_SHARE."""
    return f"{CPU_SHARE.low:.0%} to {CPU_SHARE.high:.0%}"


def sentence(count: int, flops: float, hours: Estimate, unit: str, how: str) -> str:
    """Says what runs will take, `hours` as minutes or seconds if they are less than one."""
    for smaller, each in (("seconds", 60 * 60), ("minutes", 60)):
        if unit.startswith("hours") and each * hours.high < 60:
            unit = unit.replace("hours", smaller, 1)
            hours = Estimate(each * hours.low, each * hours.middle, each * hours.high)
    return f"{number_of(count, 'run')}: {flops:.3g} FLOPs, {hours.text()} {unit} {how}"
