"""docs/kernels.md: what was measured on CPUs, from kernels/bench.csv, which `python -m flava_kernels.bench`
writes.
"""

from __future__ import annotations

import csv
from pathlib import Path

from blocks import markdown_table

OPERATORS = ("varlen_attention", "linear_cross_entropy", "info_nce", "sigmoid_loss")
"""Whose references are more than plain torch on a CPU."""

OURS = "flava_kernels"

Row = dict[str, str]


def on_a_cpu(root: Path) -> str:
    """Compares the latest rows of each operator with those of its peers, forward and backward together."""
    with (root / "kernels" / "bench.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["op"] in OPERATORS
            and row["threads"]
            and row["median_us"]
            and row["torch"].endswith("+cpu")
        ]
    latest = [next(row for row in reversed(rows) if row["op"] == operator) for operator in OPERATORS]
    same = [
        row
        for last in latest
        for row in rows
        if all(row[key] == last[key] for key in ("op", "device", "commit"))
    ]
    pairs = list(zip(same[::2], same[1::2], strict=True))  # forward, backward
    ours = {
        (forward["op"], forward["workload"]): milliseconds(forward) + milliseconds(backward)
        for forward, backward in pairs
        if forward["peer"] == OURS
    }
    lines = []
    for forward, backward in pairs:
        times = milliseconds(forward), milliseconds(backward)
        ratio = sum(times) / ours[forward["op"], forward["workload"]]
        name = f"**{OURS}** ({forward['implementation']})" if forward["peer"] == OURS else forward["peer"]
        memory = f"{float(backward['peak_mib']):,.0f}"
        lines.append(
            [
                f"{forward['op']}, {forward['workload']}",
                name,
                *(f"{time:,.1f}" for time in times),
                f"{ratio:.2f}",
                memory,
            ]
        )
    header = ["operator", "implementation", "forward, ms", "backward, ms", f"time over {OURS}", "peak MiB"]
    runs = "; ".join(
        (
            f"{last['op']} with {last['threads']} threads of {last['device']}, torch {last['torch']}, commit "
            f"{last['commit']}"
        )
        for last in latest
    )
    return (
        f"Medians in fp32: {runs}. Where a peer is missing, it could not run the workload; "
        f"`kernels/bench.csv` says why.\n\n{markdown_table(header, lines)}"
    )


def milliseconds(row: Row) -> float:
    """Returns the median time of a row."""
    return float(row["median_us"]) / 1000


BLOCKS = {"kernels_on_a_cpu": on_a_cpu}
