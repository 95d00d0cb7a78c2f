"""docs/stages.md: what image encoders know after their stage."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results


def neighbours(root: Path) -> str:
    """Returns the table of benchmarks/encoder_neighbours.py, and its command."""
    found = read_results(root, "encoder_neighbours")
    rows = []
    for row in found["rows"]:
        shares = [f"{100 * row[field]:.1f} %" for field in ("group", "subgroup")]
        rank = f"{row['effective_rank']:.1f}" if "effective_rank" in row else ""
        work = f"{row['flops'] / 1e12:.1f}" if row.get("flops") else ""
        rows.append([row["encoder"], row.get("steps", ""), work, *shares, rank])
    header = ["image encoder", "updates", "TFLOP", "group", "subgroup", "effective rank"]
    return f"{markdown_table(header, rows)}\n\n    {found['command']}"


BLOCKS = {"encoder_neighbours": neighbours}
