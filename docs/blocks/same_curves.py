"""docs/equality.md: the curves of two commits, bit by bit, from `benchmarks/same_curves.py`."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results


def same_curves(root: Path) -> str:
    """Lists the runs that were compared."""
    found = read_results(root, "same_curves")
    header = ["recipe", "ranks", "ZeRO", "steps", "kernels", "numbers compared", "different", "by"]
    names = ["recipe", "ranks", "stage", "steps", "kernels", "compared", "different"]
    rows = [
        [
            *(row[name] for name in names),
            f"{row['largest_relative_difference']:.1g}" if row["different"] else "",
        ]
        for row in found["rows"]
    ]
    table = markdown_table(header, rows)
    return f"{table}\n\nCommit {found['old']} against {found['new']}."


BLOCKS = {"same_curves": same_curves}
