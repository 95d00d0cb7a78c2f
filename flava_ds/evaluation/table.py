"""Tables of results for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flava_ds.evaluation.protocols import Evaluator, Score
from flava_ds.evaluation.published import published
from flava_ds.evaluation.registry import grouped
from flava_ds.evaluation.results import samples_of
from flava_ds.evaluation.runner import TaskResult
from flava_ds.evaluation.suite import ways


def percent(value: float | None) -> str:
    """Formats a share: '12.3 %', '0.13 %' when small, nothing for None."""
    if value is None:
        return ""
    return f"{100 * value:.2f} %" if 0 < value < 0.01 else f"{100 * value:.1f} %"


def result_rows(
    task: str, scores: Mapping[str, Score], family: str = "", departures: Sequence[str] = ()
) -> list[tuple[str, str, str, str, str]]:
    """Returns rows of task, number, value with standard error, samples, and published results, or how the
    samples depart from those that these are of.
    """
    rows = []
    for name, score in scores.items():
        others = ", ".join(f"{p.of} {score.written(p.value)}" for p in published(task, name, family))
        if others and departures:
            others = f"of other samples: {', '.join(departures)} here"
        rows.append((task, name.replace("_", " "), str(score), f"{score.n:,}", others))
    return rows


def result_table(results: Mapping[str, TaskResult], family: str = "") -> str:
    """Formats results as plain text, and says which samples they are of."""
    rows = [
        row
        for task, result in results.items()
        for row in result_rows(task, result.scores, family, result.facts.get("departures", ()))
    ]
    table = aligned(("task", "number", "value", "samples", "published"), rows)
    of = [f"{task}: {where}" for task, result in results.items() if (where := samples_of(result.facts))]
    return "\n".join([table, *of])


def task_list(tasks: Mapping[str, Evaluator]) -> str:
    """Lists tasks by group: their needs of a model, and where their data comes from, once per data set."""
    rows = []
    for group, names in grouped(tasks).items():
        rows.append((f"[{group}]", "", "", ""))
        for name in names:
            task = tasks[name]
            needs = ", ".join(need.__name__ for need in task.needs)
            rows.append((name, task.about, needs, task.data.folder + "/"))
    lines = [aligned(("task", "what", "needs", "data in ROOT/"), rows), ""]
    for data in {task.data.folder: task.data for _, task in sorted(tasks.items())}.values():
        splits = ", ".join(data.splits)
        lines += [
            f"{data.folder}/: {data.layout}",
            f"    {data.origin}. Licence: {data.licence}. Splits: {splits}."
            + (f" --splits {' or '.join(own)}." if len(own := ways(data)) > 1 else ""),
        ]
    return "\n".join(lines)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Pads columns to their longest entry."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, *rows))
