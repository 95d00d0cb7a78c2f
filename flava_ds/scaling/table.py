"""A plan as text for people and as plain values for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flava_ds.scaling.advice import Advice
from flava_ds.scaling.assumptions import RANGES
from flava_ds.scaling.captions import Lengths
from flava_ds.scaling.hardware import GIB
from flava_ds.scaling.plan import Estimate, Figures, Plan, shortened
from flava_ds.scaling.step_time import PARTS

FORECAST = "Forecast: nothing of this was measured on a GPU. Ranges come from the ends of the assumptions."
NUMBERS: dict[str, tuple[str, Callable[[Figures], float]]] = {
    "samples_per_second": ("samples/s", lambda f: f.samples_per_second),
    "step_ms": ("mean step, ms", lambda f: f.step_ms),
    "mfu_percent": ("MFU, %", lambda f: 100 * f.mfu),
    "hfu_percent": ("the same with recomputation and codebook, %", lambda f: 100 * f.hfu),
    "gpu_hours": ("GPU-hours", lambda f: f.gpu_hours),
    "peak_gib": ("peak memory per GPU, GiB", lambda f: f.peak.total / GIB),
}
"""The headline: key in JSON -> (label, value of one forecast)."""


def headline(plan: Plan, price: float | None = None) -> list[tuple[str, str, Estimate]]:
    """Returns (key, label, estimate) of the numbers that matter most."""
    rows = [(key, label, plan.estimate(value)) for key, (label, value) in NUMBERS.items()]
    gpus = plan.setting.cluster.gpus
    rows.append(("hours", "hours, without failures", plan.estimate(lambda f: f.gpu_hours / gpus)))
    if price is not None:
        rows.append(
            ("cost", "cost, in the currency of the price", plan.estimate(lambda f: f.gpu_hours * price))
        )
    return rows


def render(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Aligns columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def parameter_rows(plan: Plan) -> list[list[str]]:
    """Returns (part, parameters), the largest first, the codebook last."""
    model = plan.setting.model
    rows = [[name, f"{n:,}"] for name, n in sorted(model.encoders.items(), key=lambda item: -item[1])]
    rows.append(["all that is trained", f"{model.trainable:,}"])
    if model.frozen:
        rows.append(["frozen", f"{model.frozen:,}"])
    if model.codebook:
        rows.append(["frozen image codebook", f"{model.codebook:,}"])
    return rows


def flops_rows(plan: Plan) -> list[list[str]]:
    """Returns GFLOP per sample, forward and backward, by part (rows) and source (columns)."""
    model, setting = plan.setting.model, plan.setting
    names = list(dict.fromkeys(part for work in model.kinds.values() for part in work.parts))
    rows = [["GFLOP per sample", *(f"{name} ({work.kind})" for name, work in model.kinds.items())]]
    for part in names:
        cells = []
        for source, work in model.kinds.items():
            b = setting.samples(source)
            cells.append(f"{3 * work.parts[part].at(b) / b / 1e9:.2f}" if part in work.parts else "")
        rows.append([part, *cells])
    per_sample = {
        s: w.model_flops.at(setting.samples(s)) / setting.samples(s) for s, w in model.kinds.items()
    }
    rows.append(["forward and backward", *(f"{value / 1e9:.2f}" for value in per_sample.values())])
    online = {s: w.codebook_flops.at(setting.samples(s)) / setting.samples(s) for s, w in model.kinds.items()}
    if any(online.values()):
        rows.append(["image codebook, forward only", *(f"{value / 1e9:.2f}" for value in online.values())])
    return rows


def memory_rows(plan: Plan) -> list[list[str]]:
    """Returns GiB by part at the fullest moment: middle, and the ends of the assumptions."""
    peaks = plan.middle.peak, plan.better.peak, plan.worse.peak
    rows = [[f"GiB, {peaks[0].name} of {peaks[0].source}", "middle", "better", "worse"]]
    for part in peaks[0].parts:
        sizes = [peak.parts.get(part, 0.0) / GIB for peak in peaks]
        if max(sizes) >= 0.005:
            rows.append([part, *(f"{size:.2f}" for size in sizes)])
    rows.append(["all", *(f"{peak.total / GIB:.2f}" for peak in peaks)])
    rows.append([f"usable of {plan.setting.cluster.gpu.name}", *3 * [f"{plan.capacity / GIB:.2f}"]])
    return rows


def host_line(plan: Plan) -> str:
    """Says what the ranks of a machine take of its own memory for an offloaded optimizer; "" for nothing."""
    setting = plan.setting
    if not setting.host_bytes:
        return ""
    ranks = setting.cluster.per_node
    each, all_of_it, usual = (
        f"{size / GIB:,.1f} GiB"
        for size in (setting.host_bytes / ranks, setting.host_bytes, setting.host_capacity)
    )
    return (
        f"The offloaded optimizer takes {each} of host memory for each rank, {all_of_it} on each machine of "
        f"{ranks}; such machines usually have {usual}."
    )


def time_rows(plan: Plan) -> list[list[str]]:
    """Returns ms by part (rows): the mean step with its range, then each source's step."""
    sources = list(plan.setting.model.kinds)
    rows = [["ms", "mean (range)", *(f"{s} x {plan.setting.shares[s]:.2f}" for s in sources)]]
    for part in plan.middle.parts:
        estimate = plan.estimate(lambda figures, part=part: figures.parts[part])  # type: ignore[misc]
        if estimate.high < 0.005:
            continue
        cells = [f"{plan.middle.times[s].ms[part]:.2f}" if part in PARTS else "" for s in sources]
        rows.append([part, estimate.text(), *cells])
    totals = [f"{plan.middle.times[source].total:.2f}" for source in sources]
    rows.append(["step", plan.estimate(lambda figures: figures.step_ms).text(), *totals])
    hidden = [f"{plan.middle.times[source].hidden_ms:.2f}" for source in sources]
    rows.append(["communication behind the backward pass", "", *hidden])
    rows.append(["host, beside the device", "", *(f"{plan.middle.times[s].host_ms:.2f}" for s in sources)])
    return rows


def kernel_rows(plan: Plan) -> list[list[str]]:
    """Returns ms on the device by what a profile shows (rows) and each source's step, the longest first."""
    sources = list(plan.setting.model.kinds)
    found = {source: plan.middle.times[source].kernels for source in sources}
    names = sorted(
        {name for own in found.values() for name in own},
        key=lambda name: -max(own.get(name, 0.0) for own in found.values()),
    )
    rows = [["ms on the device", *sources]]
    return rows + [[name, *(f"{found[source].get(name, 0.0):.2f}" for source in sources)] for name in names]


def batch_rows(plan: Plan) -> list[list[str]]:
    """Returns the micro-batch of each source and the largest that fits."""
    rows = [["samples per GPU and micro-step", "now", "largest that fits"]]
    for source in plan.setting.model.kinds:
        largest = plan.estimate(lambda figures, source=source: figures.largest[source])  # type: ignore[misc]
        rows.append([source, str(plan.setting.samples(source)), largest.text(4)])
    return rows


def advice_lines(advice: Sequence[Advice]) -> list[str]:
    """Returns one line for each change."""
    lines = []
    for each in advice:
        other = "; this changes what is learned" if each.changes_training and "batch" in each.what else ""
        memory = f", {each.memory_gib:+.1f} GiB" if abs(each.memory_gib) >= 0.05 else ""
        low, middle, high = (f"{gain:+.1%}" for gain in dataclasses.astuple(each.gain))
        lines.append(f"{middle} ({low} to {high}) samples/s{memory}: {each.what} ({each.option}){other}")
    return lines


def loader_line(plan: Plan) -> str:
    """Says how many cores of a node the loader needs."""
    cluster, shares = plan.setting.cluster, plan.setting.shares
    pictures = sum(
        share * plan.setting.global_batches[s]
        for s, share in shares.items()
        if plan.setting.model.kinds[s].has_pictures
    )
    rate = RANGES["loader_rate"]
    each = pictures / plan.middle.step_ms * 1e3 / cluster.nodes
    return (
        f"The loader decodes {shortened(each)} pictures/s on each node: about {each / rate.middle:.0f} cores "
        f"({each / rate.better:.0f} to {each / rate.worse:.0f})."
    )


def report(
    plan: Plan, lengths: dict[str, Lengths], advice: Sequence[Advice], fix: str, price: float | None
) -> str:
    """Returns the plan as text."""
    setting, cluster = plan.setting, plan.setting.cluster
    where = f"{cluster.gpus} x {cluster.gpu.title}" + (
        f" on {cluster.nodes} nodes, {cluster.network.title}" if cluster.nodes > 1 else ""
    )
    texts = "; ".join(
        f"{name}: {own.mean:.1f} +- {own.deviation:.1f} tokens ({own.origin})"
        for name, own in lengths.items()
    )
    blocks = [
        f"{setting.model.recipe} on {where}\n{FORECAST}",
        render([[label, estimate.text()] for _, label, estimate in headline(plan, price)]),
        f"Memory: fits {plan.fits}" + (f"; {fix}" if fix else ""),
        render(memory_rows(plan)),
        host_line(plan),
        render(batch_rows(plan)),
        f"Time: the bottleneck is '{plan.bottleneck}'",
        render(time_rows(plan)),
        render(kernel_rows(plan)),
        loader_line(plan),
        setting.calibration.text if setting.calibration else "",
        "What would help most:" if advice else "No setting that is known would help by more than 0.2 %.",
        *(["\n".join(f"  {line}" for line in advice_lines(advice))] if advice else []),
        "Work (exact, but for the lengths of texts)",
        render(flops_rows(plan)),
        f"  texts: {texts}" if texts else "",
        render([["parameters", ""], *parameter_rows(plan)]),
    ]
    return "\n\n".join(block for block in blocks if block)


def ranges(plan: Plan, parts: Callable[[Figures], Mapping[str, float]]) -> dict[str, list[float]]:
    """Returns the lowest and highest forecast of every part."""
    found = {}
    for name in parts(plan.middle):
        estimate = plan.estimate(lambda figures, name=name: parts(figures).get(name, 0.0))  # type: ignore[misc]
        found[name] = [estimate.low, estimate.high]
    return found


def as_json(
    plan: Plan, lengths: dict[str, Lengths], advice: Sequence[Advice], fix: str, price: float | None
) -> dict[str, Any]:
    """Returns the plan as plain values; every estimate as low, middle and high."""
    setting = plan.setting
    numbers = {key: dataclasses.asdict(estimate) for key, _, estimate in headline(plan, price)}
    return {
        "forecast": True,
        "recipe": setting.model.recipe,
        "gpus": setting.cluster.gpus,
        "gpu": setting.cluster.gpu.name,
        "nodes": setting.cluster.nodes,
        "network": setting.cluster.network.name,
        "zero": dataclasses.asdict(setting.zero),
        **numbers,
        "fits": plan.fits,
        "to_make_it_fit": fix,
        "memory_bytes": dict(plan.middle.peak.parts),
        "memory_bytes_range": ranges(plan, lambda figures: figures.peak.parts),
        "host_bytes": {
            "rank": setting.host_bytes / setting.cluster.per_node,
            "machine": setting.host_bytes,
            "usual_machine": setting.host_capacity,
        },
        "memory_moment": [plan.middle.peak.source, plan.middle.peak.name],
        "micro_batches": setting.micro_batches,
        "largest_micro_batches": dict(plan.middle.largest),
        "largest_micro_batches_range": ranges(plan, lambda figures: figures.largest),
        "bottleneck": plan.bottleneck,
        "mean_ms": dict(plan.middle.parts),
        "mean_ms_range": ranges(plan, lambda figures: figures.parts),
        "ms": {source: dict(time.ms) for source, time in plan.middle.times.items()},
        "kernels_ms": {source: dict(time.kernels) for source, time in plan.middle.times.items()},
        "advice": [dataclasses.asdict(each) for each in advice],
        "parameters": {**setting.model.encoders, "trainable": setting.model.trainable},
        "gflop_per_sample": {
            source: {
                part: 3e-9 * amount.at(setting.samples(source)) / setting.samples(source)
                for part, amount in work.parts.items()
            }
            for source, work in setting.model.kinds.items()
        },
        "captions": {
            name: {"mean": own.mean, "deviation": own.deviation, "origin": own.origin}
            for name, own in lengths.items()
        },
        "calibration": setting.calibration.text if setting.calibration else None,
        "assumptions": {name: dataclasses.asdict(found) for name, found in RANGES.items()},
    }
