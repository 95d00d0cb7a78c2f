"""What a run has used and reached, from its log: samples, FLOPs and time along its steps, last numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flava_ds.config import Config
from flava_ds.config.evaluation import check_logged
from flava_ds.config.objectives import in_use
from flava_ds.errors import ConfigError
from flava_ds.watching.run_log import RunLog

LAST_SHARE = 0.1
"""Share of a run's steps over which a training loss is averaged at its end."""
AVERAGED = ("loss/", "accuracy/", "metric/")
LATEST = ("evaluation/",)
"""Numbers in the results of a run, by how their names begin."""
WITH_TARGETS = "flops_with_targets"
"""FLOPs of frozen networks that compute targets, such as the image codebook, included."""
TOTALS = ("steps", "samples", "unique_samples", "flops", WITH_TARGETS, "seconds", "gpu_hours")
"""Numbers that the results of every run have."""
RATES = {"samples": "samples_per_second", "flops": "flops_per_second"}


@dataclass(frozen=True)
class Course:
    """What a run had used by each line of its log."""

    steps: list[int]
    used: Mapping[str, list[float]]
    """samples, flops, flops_with_targets, seconds and gpu_hours -> amounts; of a CPU, ranks count as GPUs."""

    def along(self, log: RunLog, metric: str, what: str) -> tuple[list[float], list[float]]:
        """Returns how much of `what` was used where a number was logged, and the number."""
        steps, values = log.series(metric)
        by_step = dict(zip(self.steps, self.used[what], strict=True))
        return [by_step[step] for step in steps], values


def course(log: RunLog) -> Course:
    """Adds up what a log's lines say of the steps since the line before, on the ranks of the time."""
    starts = [(0, log.header), *((own["step"], own) for own in log.header.get("resumed", []))]
    totals, before = dict.fromkeys((*RATES, WITH_TARGETS, "seconds", "gpu_hours"), 0.0), -1
    steps: list[int] = []
    used: dict[str, list[float]] = {name: [] for name in totals}
    for line in log.steps:
        seconds = (line["step"] - before) * _number(line, "seconds_per_step")
        for name, rate in RATES.items():
            totals[name] += seconds * _number(line, rate)
        own, all_flops = (_number(line, name) for name in ("mfu", "mfu_with_targets"))
        more = all_flops / own if all_flops and own else 1.0
        totals[WITH_TARGETS] += more * seconds * _number(line, RATES["flops"])
        totals["seconds"] += seconds
        before = line["step"]
        of_start = [own for first, own in starts if first <= before][-1]
        totals["gpu_hours"] += seconds * int(of_start.get("hardware", {}).get("ranks", 1)) / 3600
        steps.append(before)
        for name, total in totals.items():
            used[name].append(total)
    return Course(steps, used)


def results(log: RunLog) -> dict[str, Any]:
    """Returns the numbers of a run's end by name; empty for a log without steps.

    `unique_samples` are those that it saw at least once: each source's samples over its passes. Training
    losses are means over the last tenth of the steps, or the last one if none of these had it; evaluations
    are the last ones. A number that is not finite at the end is left out: what came before is not reached.
    """
    if not log.steps:
        return {}
    found, last = course(log), log.steps[-1]
    steps = last["step"] + 1
    samples = round(found.used["samples"][-1])
    values: dict[str, Any] = {
        "steps": steps,
        "samples": samples,
        "unique_samples": samples * _fresh_share(last, log.header.get("config", {})),
        "flops": found.used["flops"][-1],
        WITH_TARGETS: found.used[WITH_TARGETS][-1],
        "seconds": found.used["seconds"][-1],
        "gpu_hours": found.used["gpu_hours"][-1],
    }
    for prefix in (*AVERAGED, *LATEST):
        for name in log.names(prefix):
            at, numbers = log.series(prefix + name)
            first = 0 if prefix in LATEST else steps * (1 - LAST_SHARE)
            late = [number for step, number in zip(at, numbers, strict=True) if step >= first]
            if chosen := [] if log.not_finite_from(prefix + name) is not None else late or numbers[-1:]:
                values[prefix + name] = chosen[-1] if prefix in LATEST else sum(chosen) / len(chosen)
    return values


def check_metric(metric: str, config: Config) -> None:
    """Raises ConfigError when a run of this configuration will not have a number by which to compare it."""
    head = metric.split("/")[0] + "/"
    if metric not in TOTALS and head not in (*AVERAGED, *LATEST):
        known = ", ".join((*AVERAGED, *LATEST))
        raise ConfigError(f"metric is {metric!r:.100}; results have numbers that begin with {known}")
    if metric not in TOTALS:
        check_logged("metric", metric, config.evaluation, in_use(config.objectives))


def _fresh_share(line: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """Returns the share of a run's samples that it saw for the first time, by its sources' passes.

    A source's samples are its steps times its batch, by the configuration in the log.
    """
    batch, sources = (
        config.get("training", {}).get("global_batch_size"),
        config.get("data", {}).get("sources", {}),
    )
    samples, passes = {}, {}
    for key, share in line.items():
        name = key.removeprefix("source_share/")
        if name != key:
            samples[name] = share * (sources.get(name, {}).get("global_batch_size") or batch or 1)
            passes[name] = _number(line, f"epoch/{name}")
    if not (total := sum(samples.values())):
        return 1.0
    return sum(own / total / max(1.0, passes[name]) for name, own in samples.items())


def _number(line: Mapping[str, Any], name: str) -> float:
    value = line.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
