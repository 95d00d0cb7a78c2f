"""docs/multi_node.md: runs by Slurm, interrupted and continued, from `benchmarks/slurm.py`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from blocks import markdown_table, read_results


def of_run(row: dict[str, Any]) -> list[Any]:
    """Returns a line of the table."""
    return [
        row["how"],
        f"{row['continued_from']} of {row['steps']}" if row["continued_from"] else "",
        f"{row['restarts']} times" if row["restarts"] > 1 else row["restarts"],
        "equal, bit by bit" if row["equal"] else "**different**",
    ]


def slurm(root: Path) -> str:
    """Shows what became of every run, and what the one that met its time limit has written."""
    found = read_results(root, "slurm")
    header = [
        "interrupted by",
        "continued (at last) from step",
        "requeued",
        "losses, accuracies and gradient norms against one host without interruption",
    ]
    limited = next(row for row in found["rows"] if row["how"] == "the time limit")
    states = " and ".join(f"{count} {state}" for state, count in Counter(found["array"]).items())
    return "\n\n".join(
        [
            f"Slurm {found['slurm']}, two hosts with one rank each, torch {found['torch']}, deepspeed "
            f"{found['deepspeed']}:",
            markdown_table(header, [of_run(row) for row in found["rows"]]),
            f"A sweep's job array of {len(found['array'])} runs on one host each, two at a time: {states}.",
            "What the job that met its time limit has written, from its first end to its second beginning:",
            "```\n$ " + limited["command"] + "\n" + "\n".join(limited["log"]) + "\n```",
        ]
    )


BLOCKS = {"slurm": slurm}
