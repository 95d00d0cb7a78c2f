"""The table of compiled configurations, kernels/aot.csv, and Markdown of selected rows."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from flava_kernels.aot_row import Row, read_row

PATH = Path(__file__).parents[1] / "aot.csv"

Key = tuple[str, str]
"""Architecture and name of a configuration."""

HEADER = {
    "triton": lambda row: row.triton,
    "GPU": lambda row: row.arch,
    "kernel": lambda row: row.name,
    "warps": lambda row: row.num_warps,
    "registers": lambda row: row.registers,
    "spills, B": lambda row: row.spilled_bytes,
    "shared, KiB": lambda row: f"{row.shared / 1024:.1f}",
    "tensor memory": lambda row: row.tensor_memory,
    "matrix instructions / dots": lambda row: f"{row.matrix_instructions}/{row.dots}" if row.dots else "-",
    "16-byte loads / loads": lambda row: f"{row.wide_loads}/{row.loads}",
    "blocks, limit": lambda row: f"{row.blocks}, {row.limited_by}",
    "loop instructions": lambda row: row.loop_instructions,
    "cycles: issue / special / matrix / cache / memory": lambda row: " / ".join(
        str(cycles)
        for cycles in (
            row.issue_cycles,
            row.special_cycles,
            row.matrix_cycles,
            row.cache_cycles,
            row.memory_cycles,
        )
    ),
    "bound by": lambda row: row.bound,
    "share of the roof": lambda row: f"{row.share:.2f}",
}


def markdown(rows: Iterable[Row]) -> str:
    """Formats the table; the last four columns are the static estimate."""
    lines = [
        list(HEADER),
        ["---"] * len(HEADER),
        *([str(cell(row)) for cell in HEADER.values()] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_csv(path: Path, version: str, rows: Iterable[Row], order: Sequence[Key], partial: bool) -> None:
    """Replaces the rows of one Triton version, in the given order; if `partial`, only the rows in `rows`."""
    lines = {
        (line["triton"], line["arch"], line["name"]): line
        for line in (read_csv(path) if path.exists() else ())
    }
    if not partial:
        lines = {key: line for key, line in lines.items() if key[0] != version}
    lines |= {(row.triton, row.arch, row.name): asdict(row) for row in rows}
    place = {key: number for number, key in enumerate(order)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for key in sorted(lines, key=lambda key: (key[0], place.get(key[1:], len(place)))):
            writer.writerow(lines[key])


def rows_of(path: Path, version: str) -> dict[Key, Row]:
    """Reads the rows of one Triton version; a missing file has none."""
    lines = read_csv(path) if path.exists() else []
    return {(line["arch"], line["name"]): read_row(line) for line in lines if line["triton"] == version}


def read_csv(path: Path) -> list[dict[str, str]]:
    """Reads what `write_csv` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
