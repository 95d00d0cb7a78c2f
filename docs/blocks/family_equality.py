"""docs/equality.md: how far each family is from its reference, and from itself in other splits of a step,
from `benchmarks/family_equality.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blocks import markdown_table, read_results


def family_parity(root: Path) -> str:
    """Lists the largest differences of outputs and gradients by family, reference and precision."""
    found = read_results(root, "family_equality")
    rows = [
        [
            f"`{row['family']}`",
            row["reference"],
            {"float32": "fp32", "float64": "fp64"}[row["dtype"]],
            *(cell(row, name) for name in ("outputs", "gradients")),
        ]
        for row in found["rows"]
        if row["table"] == "parity"
    ]
    header = ["family", "reference", "precision", "outputs (limit)", "gradients (limit)"]
    versions = f"torch {found['torch']}, transformers {found['transformers']}"
    return f"{markdown_table(header, sorted(rows))}\n\n{versions}."


def cell(row: dict[str, Any], name: str) -> str:
    """Returns a difference with its limit; nothing where none was measured."""
    return f"{row['found'][name]:.1e} ({row['limits'][name]:.0e})" if name in row["found"] else ""


def family_splits(root: Path) -> str:
    """Lists the largest differences of losses by family and split."""
    found = read_results(root, "family_equality")
    rows = [
        [
            f"`{row['family']}`",
            row["split"],
            row["losses"],
            f"{row['found']:.1e} ({row['limit']:.0e})",
        ]
        for row in found["rows"]
        if row["table"] == "splits"
    ]
    table = markdown_table(["family", "split", "losses", "largest difference (limit)"], rows)
    return f"{table}\n\ntorch {found['torch']}, deepspeed {found['deepspeed']}."


BLOCKS = {"family_parity": family_parity, "family_splits": family_splits}
