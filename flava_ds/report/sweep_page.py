"""The page of a sweep: its runs side by side, over samples, FLOPs and GPU-hours, in one HTML file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from flava_ds.report.charts import Line, draw, smooth
from flava_ds.report.template import markup, render, write_page
from flava_ds.scaling.results import course
from flava_ds.scaling.sweep import FINISHED, Sweep
from flava_ds.watching.run_log import read_log

AXES = {"samples": "Samples", "flops": "FLOPs", "gpu_hours": "GPU-hours"}
SMOOTHED = ("loss/", "accuracy/", "metric/")
SHOWN = ("parameters", "samples", "batch", "flops", "gpu_hours")


def write_sweep_page(sweep: Sweep) -> Path:
    """Writes `sweep.html` into a sweep's folder. Returns its path."""
    rows = sweep.rows()
    page = render(
        "sweep.html",
        name=sweep.folder.name,
        base=sweep.base,
        commit=sweep.commit[:10],
        metric=sweep.metric,
        higher=sweep.higher_is_better(),
        counts=Counter(row["state"] for row in rows),
        best=best_of(sweep, rows),
        charts=charts(sweep, rows),
        runs=status_rows(sweep, reasons=False),
        reasons=[(row["run"], row["state"], row["reason"]) for row in rows if row["reason"]],
    )
    return write_page(sweep.folder / "sweep.html", page)


def best_of(sweep: Sweep, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the finished run with the best metric; None when there is none."""
    done = [row for row in rows if row["state"] == FINISHED]
    return next(iter(best_first(sweep, done)), None)


def best_first(sweep: Sweep, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows that have the metric, the best first."""
    known = [row for row in rows if row.get(sweep.metric, "") != ""]
    return sorted(known, key=lambda row: row[sweep.metric], reverse=sweep.higher_is_better())


def charts(sweep: Sweep, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Draws the metric of all runs by what they had used; the best one stands out."""
    best = best_of(sweep, rows)
    lines: dict[str, list[Line]] = {what: [] for what in AXES}
    for row in rows:
        log = read_log(sweep.path_of(row["run"]) / "log.jsonl")
        own = course(log)
        for what in AXES:
            places, values = own.along(log, sweep.metric, what)
            if values:
                shown = smooth(values) if sweep.metric.startswith(SMOOTHED) else values
                lines[what].append(Line(places, shown, faint=best is None or row["run"] != best["run"]))
    return [
        {
            "title": title,
            "words": f"{sweep.metric} of {len(lines[what])} runs",
            "svg": markup(draw(f"{sweep.metric} by {title}", lines[what])),
        }
        for what, title in AXES.items()
        if lines[what]
    ]


def status_rows(sweep: Sweep, *, reasons: bool = True) -> list[list[str]]:
    """Returns the runs as text, the best metric first, then those that are not finished. State and metric
    come first, as a narrow window cuts off the last columns, and `reasons` last, as they are long.
    """
    rows = sweep.rows()
    axes = [column for column in rows[0] if column.startswith("axis/")] if rows else []
    more = (*SHOWN, "reason") if reasons else SHOWN
    columns = [sweep.metric, *axes, *(name for name in more if any(row.get(name, "") != "" for row in rows))]
    found = [["run", "state", *(column.removeprefix("axis/") for column in columns)]]
    unfinished = [row for row in rows if row.get(sweep.metric, "") == ""]
    for row in (*best_first(sweep, rows), *unfinished):
        state = row["state"] + (", held out" if row["held_out"] else "")
        found.append([row["run"], state, *(_shown(row.get(column, "")) for column in columns)])
    return found


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3g}"
