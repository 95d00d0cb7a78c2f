"""docs/faults.md: what each injected fault leads to, from `benchmarks/faults.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blocks import markdown_table, read_results

EQUAL = {True: "yes", False: "NO", None: "nothing had begun"}


def faults(root: Path) -> str:
    """Lists faults with the line that a user sees, the seconds to the end of all ranks, and whether the run
    went on with an equal curve.
    """
    results = read_results(root, "faults")
    rows = [
        [
            row["fault"],
            f"`{row['said']}`" if row["said"] else "",
            "" if row["seconds"] is None else f"{row['seconds']:.1f} s",
            EQUAL[row["equal"]],
        ]
        for row in results["rows"]
    ]
    return markdown_table(["fault", "what the user sees", "time to exit", "resumed curve equal"], rows)


def faults_campaign(root: Path) -> str:
    """Counts trials by fault: runs that it ended, the slowest exit, equal results, and problems."""
    results = read_results(root, "faults_campaign")
    by_fault: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        by_fault.setdefault(row["fault"], []).append(row)
    rows = [_campaign_row(fault, by_fault[fault]) for fault in sorted(by_fault)]
    rows.append(_campaign_row("**all**", results["rows"]))
    table = markdown_table(
        ["fault", "trials", "runs that it ended", "slowest exit", "equal in the end", "problems"], rows
    )
    problems = [
        f"* Trial {row['trial']}, {row['fault']} ({', '.join(row['drawn'])}): {'; '.join(row['problems'])}"
        for row in results["rows"]
        if row["problems"]
    ]
    told = f"Seed {results['seed']}, {results['cores']} cores, torch {results['torch']}."
    return "\n\n".join([table, told, *(["\n".join(problems)] if problems else [])])


def _campaign_row(fault: str, rows: list[dict[str, Any]]) -> list[Any]:
    """Sums up the trials of one fault."""
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None and any(row["statuses"])]
    return [
        fault,
        len(rows),
        sum(any(row["statuses"]) for row in rows),
        f"{max(seconds):.1f} s" if seconds else "",
        f"{sum(row['equal'] for row in rows)} of {len(rows)}",
        sum(bool(row["problems"]) for row in rows),
    ]


BLOCKS = {"faults": faults, "faults_campaign": faults_campaign}
