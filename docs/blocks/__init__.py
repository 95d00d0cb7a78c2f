"""What fills the generated blocks of the pages: one module per subject.

A module has BLOCKS, from the name of a block to a function that takes the root of the repository and returns
Markdown; FileNotFoundError from it means that nothing has been measured yet. `docs/fill.py` finds every
module here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_results(root: Path, name: str) -> dict[str, Any]:
    """Reads benchmarks/results/NAME.json."""
    return json.loads((root / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def markdown_table(header: list[str], rows: list[list[Any]]) -> str:
    """Formats a table, without a newline at its end."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
