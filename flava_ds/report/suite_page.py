"""A suite's results in the shape of the paper's tables: one page of HTML and the same in Markdown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flava_ds.evaluation.paper_table import DOMAINS, OTHER_SPLITS, ROWS, Row
from flava_ds.evaluation.suite import IDENTITY
from flava_ds.report.template import render, write_page
from flava_ds.storage.atomic import write_whole

SHOWN = ("FLAVA", "FLAVA_MM", "FLAVA_C", "MIM", "MLM", "CLIP on PMD", "CLIP-400M")
"""Columns of the paper's table beside ours."""
HTML, MARKDOWN = "suite.html", "suite.md"


@dataclass(frozen=True)
class Line:
    """One line of a table, ready to print: percentages as the paper has them, or numbers with units."""

    title: str
    task: str
    splits: str
    value: str
    interval: str
    samples: str
    published: tuple[str, ...] = ()
    is_average: bool = False


@dataclass(frozen=True)
class Table:
    """The tasks of one domain, or those that the paper does not have."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    absent: tuple[str, ...] = ()
    """The paper's rows of this domain that nothing was found for."""
    unit: str = "%"
    """Of all its numbers; empty if each names its own."""


def suite_links(run_path: Path, folder: Path) -> list[tuple[str, str, str]]:
    """Returns name, step and link, from a page in `folder`, of each suite whose page lies in the run's."""
    found = []
    for page in sorted(run_path.glob(f"suites/*/step_*/{HTML}")):
        step, _, average = page.parts[-2].removeprefix("step_").partition("_")
        if step.isdecimal():
            of = f"{int(step):,} ({average})" if average else f"{int(step):,}"
            found.append((page.parts[-3], of, quote(os.path.relpath(page, folder))))
    return found


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Returns the paper's domains that something was found for, then what is not in the paper."""
    results = report["tasks"]
    found = [_domain(domain, results) for domain in DOMAINS]
    in_paper = {(row.task, row.number) for row in ROWS}
    others = tuple(
        _line(f"{task} {number.replace('_', ' ')}", task, result, score, _with_unit(score["unit"]))
        for task, result in results.items()
        for number, score in result.get("scores", {}).items()
        if (task, number) not in in_paper
    )
    more = [Table("Not in the paper's table", (), others, unit="")] if others else []
    return [table for table in found if table.lines] + more


def _domain(domain: str, results: Mapping[str, Any]) -> Table:
    rows = [row for row in ROWS if row.domain == domain]
    here = [row for row in rows if row.number in results.get(row.task, {}).get("scores", {})]
    columns = tuple(of for of in SHOWN if any(row.values[of] is not None for row in rows))
    published = [[_published(row, of, results) for of in columns] for row in here]
    lines = [
        _line(title_of(row), row.task, results[row.task], _score(row, results), _percent, values)
        for row, values in zip(here, published, strict=True)
    ]
    if here:
        means = [_mean(list(values)) for values in zip(*published, strict=True)]
        title = "average" if len(here) == len(rows) else f"average of these {len(here)} of {len(rows)}"
        ours = _percent(_mean([_score(row, results)["value"] for row in here]))
        lines.append(Line(title, "", "", ours, "", "", tuple(map(_percent, means)), is_average=True))
    absent = tuple(row.title for row in rows if row not in here)
    return Table(DOMAINS[domain], columns, tuple(lines), absent)


def title_of(row: Row) -> str:
    """Names a row, with the published numbers' split where that is another than ours."""
    other = OTHER_SPLITS.get(row.task)
    return f"{row.title} (published: {other})" if other else row.title


def _published(row: Row, of: str, results: Mapping[str, Any]) -> float | None:
    """Returns the paper's number, or None if ours is of other samples."""
    return None if results[row.task].get("departures") else row.values[of]


def _score(row: Row, results: Mapping[str, Any]) -> dict[str, Any]:
    return results[row.task]["scores"][row.number]


def _line(
    title: str,
    task: str,
    result: Mapping[str, Any],
    score: Mapping[str, Any],
    show: Callable[[float], str],
    published: Sequence[float | None] = (),
) -> Line:
    interval = f"{show(score['interval'][0])} to {show(score['interval'][1])}" if score["interval"] else ""
    others = tuple(map(_percent, published))
    splits = result.get("splits", result["split"])
    return Line(title, task, splits, show(score["value"]), interval, f"{score['n']:,}", others)


def _percent(share: float | None) -> str:
    """Writes a share, or as the paper does, a correlation."""
    return "–" if share is None else f"{100 * share:.2f}"


def _with_unit(unit: str) -> Callable[[float], str]:
    if unit == "share":
        return lambda share: f"{_percent(share)} %"
    return lambda value: f"{value:.4f} nats" if unit == "nats" else f"{value:.4f}"


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what the numbers depend on."""
    drawn = report["bootstrap"]
    named = [(name, report.get(name)) for name in ("model", "family", "step", "average", *IDENTITY)]
    return [
        *((name, str(value)) for name, value in named if value is not None),
        (
            "intervals",
            f"{100 * drawn['level']:.0f} % of {drawn['resamples']} resamples, seed {drawn['seed']}; "
            "Wilson's for means over classes and where all samples are alike",
        ),
        *((name, version) for name, version in report["versions"].items()),
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """Writes the page in Markdown."""
    text = [f"# {report['model']}: suite {report['suite']}", "", tables_as_markdown(report)]
    text += ["## What the numbers depend on", "", *(f"- {name}: {value}" for name, value in facts(report))]
    reasons = not_run(report)
    if reasons:
        text += ["", "## Not run", "", *(f"- `{task}`: {reason}" for task, reason in reasons)]
    return "\n".join(text) + "\n"


def tables_as_markdown(report: Mapping[str, Any]) -> str:
    """Writes the tables only."""
    text = []
    for table in tables(report):
        head = ("task", "splits", table.unit or "this model", "95 % interval", "samples", *table.columns)
        text += [f"## {table.title}", "", _row(head), _row(["---", "---", *["---:"] * (len(head) - 2)])]
        for line in table.lines:
            cells = (line.title, line.splits, line.value, line.interval, line.samples, *line.published)
            text.append(_row([f"**{cell}**" if line.is_average and cell else cell for cell in cells]))
        if table.absent:
            text += ["", f"Not found: {', '.join(table.absent)}."]
        text.append("")
    return "\n".join(text)


def not_run(report: Mapping[str, Any], kinds: Sequence[str] = ("failed", "skipped")) -> list[tuple[str, str]]:
    """Returns the tasks without numbers, and why: those that failed, and those that were skipped, as their
    data are not there or the model lacks something.
    """
    return [
        (task, result[kind]) for task, result in report["tasks"].items() for kind in kinds if kind in result
    ]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_pages(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes both pages and returns their paths."""
    write_whole(folder / MARKDOWN, markdown(report))
    page = render(
        "suite.html",
        report=report,
        tables=tables(report),
        facts=facts(report),
        failed=not_run(report, ["failed"]),
        skipped=not_run(report, ["skipped"]),
    )
    return [folder / MARKDOWN, write_page(folder / HTML, page)]
