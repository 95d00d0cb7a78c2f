"""docs/equality.md: the curves of two commits, bit by bit, from `benchmarks/same_curves.py`."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results


def same_curves(root: Path) -> str:
    """Lists the runs that were compared."""
    found = read_results(root, "same_curves")
    header = ["recipe", "ranks", "ZeRO", "steps", "kernels", "numbers compared", "different"]
    names = ["recipe", "ranks", "stage", "steps", "kernels", "compared", "different"]
    table = markdown_table(header, [[row[name] for name in names] for row in found["rows"]])
    return f"{table}\n\nCommit {found['old']} against {found['new']}."


BLOCKS = {"same_curves": same_curves}
