"""docs/faults.md: what each injected fault leads to, from `benchmarks/faults.py`."""

from __future__ import annotations

from pathlib import Path

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


BLOCKS = {"faults": faults}
