"""The page of `flava-ds plan`: headline, memory, time, advice and how all of it changes, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flava_ds.report.charts import Line, Scale, draw
from flava_ds.report.template import markup, render, write_page
from flava_ds.scaling import table
from flava_ds.scaling.advice import Advice
from flava_ds.scaling.assumptions import BETTER, MIDDLE, RANGES, WORSE, Assumptions
from flava_ds.scaling.captions import Lengths
from flava_ds.scaling.hardware import GIB
from flava_ds.scaling.memory import moments
from flava_ds.scaling.plan import Plan, forecast
from flava_ds.scaling.scales import Scaled, scale_rows
from flava_ds.scaling.simulator import scaled

POINTS = 24
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
ENDS: tuple[tuple[Assumptions, bool], ...] = ((WORSE, True), (BETTER, True), (MIDDLE, False))


def write_plan_page(
    path: Path,
    plan: Plan,
    lengths: dict[str, Lengths],
    advice: Sequence[Advice],
    fix: str,
    price: float | None,
    simulated: Sequence[Scaled] = (),
) -> Path:
    """Writes the page and returns its path."""
    page = render(
        "plan.html",
        plan=plan,
        forecast=table.FORECAST,
        headline=[(label, estimate) for _, label, estimate in table.headline(plan, price)],
        fix=fix,
        memory=bars(plan.middle.peak.parts, GIB),
        memory_title=f"{plan.middle.peak.name} pass of {plan.middle.peak.source}",
        capacity=plan.capacity / GIB,
        host=table.host_line(plan),
        time=bars(plan.middle.parts, 1.0),
        charts=charts(plan),
        advice=table.advice_lines(advice),
        loader=table.loader_line(plan),
        tables=[
            ("Memory at the fullest moment", table.memory_rows(plan)),
            ("Micro-batches", table.batch_rows(plan)),
            ("Time of a step", table.time_rows(plan)),
            ("Kernels of a step", table.kernel_rows(plan)),
            ("Work of a sample", table.flops_rows(plan)),
            ("Parameters", [["part", "elements"], *table.parameter_rows(plan)]),
            *(
                (f"Simulated: {'the same batch on each GPU' if weak else 'the same batch in all'}", rows)
                for weak in (False, True)
                if simulated and len(rows := scale_rows(simulated, weak)) > 1
            ),
        ],
        texts={name: f"{own.mean:.1f} tokens, {own.origin}" for name, own in lengths.items()},
        assumptions=RANGES,
    )
    return write_page(path, page)


def bars(parts: Any, unit: float) -> list[tuple[str, str, float]]:
    """Returns (part, amount, per cent of the largest) of the parts that are seen, the largest first."""
    largest = max(parts.values())
    found = sorted(parts.items(), key=lambda item: -item[1])
    return [
        (name, f"{size / unit:.2f}", 100 * size / largest) for name, size in found if size >= largest / 500
    ]


def charts(plan: Plan) -> list[dict[str, Any]]:
    """Draws memory against the micro-batch, and rates against the number of GPUs, each with its range."""
    setting, source = plan.setting, plan.middle.peak.source
    most = max(2 * setting.samples(source), 1.2 * plan.better.largest[source])
    sizes = sorted({max(1, round(most * k / POINTS)) for k in range(POINTS + 1)})

    def gib(size: int, assumed: Assumptions) -> float:
        found = moments(setting.model, source, setting.zero, setting.cluster.gpus, size, assumed)
        return max(moment.total for moment in found) / GIB

    memory = [Line(sizes, [gib(size, assumed) for size in sizes], faint) for assumed, faint in ENDS]
    strong = [other for count in COUNTS if (other := scaled(setting, count, weak=False)) is not None]
    shown = [other.cluster.gpus for other in strong]
    rates, shares = [], []
    for assumed, faint in ENDS:
        figures = [forecast(other, assumed) for other in strong]
        rates.append(Line(shown, [each.samples_per_second for each in figures], faint))
        shares.append(Line(shown, [100 * each.mfu for each in figures], faint))
    both = Scale(logarithmic=True, logarithmic_steps=True)
    return [
        {
            "title": "Memory, GiB",
            "words": f"by samples of {source} per GPU; dashed: what the GPU has",
            "svg": markup(
                draw("memory by micro-batch", memory, Scale(from_zero=True), level=plan.capacity / GIB)
            ),
        },
        {
            "title": "Samples per second",
            "words": "by GPUs, with the same global batch",
            "svg": markup(draw("samples per second by GPUs", rates, both)),
        },
        {
            "title": "MFU, %",
            "words": "by GPUs, with the same global batch",
            "svg": markup(draw("MFU by GPUs", shares, replace(both, logarithmic=False, from_zero=True))),
        },
    ]
