"""What fills the generated blocks of the pages: one module per subject.

A module has BLOCKS, from the name of a block to a function that takes the root of the repository and returns
Markdown; FileNotFoundError from it means that nothing has been measured yet. `docs/fill.py` finds every
module here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flava_ds.campaigns import campaign


def read_results(root: Path, name: str) -> dict[str, Any]:
    """Reads benchmarks/results/NAME.json."""
    return json.loads((root / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def campaign_results(root: Path, table: str) -> dict[str, list[dict[str, Any]]]:
    """Reads a table's results of the work `small`. Raises: FileNotFoundError without any."""
    folder = root / "benchmarks" / "results" / table / "small"
    found = campaign.read_results(folder)
    if not found:
        raise FileNotFoundError(2, "no results", str(folder))
    return found


def ranged(estimate: Mapping[str, float], form: str = "{:.1f}") -> str:
    """Writes an estimate with its range, if it has one."""
    low, middle, high = (form.format(estimate[end]) for end in ("low", "middle", "high"))
    return middle if low == high else f"{middle} ({low} to {high})"


def markdown_table(header: list[str], rows: list[list[Any]]) -> str:
    """Formats a table, without a newline at its end."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
