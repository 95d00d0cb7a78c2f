"""docs/stages.md: what image encoders know after their stage."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results


def neighbours(root: Path) -> str:
    """Returns the table of benchmarks/encoder_neighbours.py: means over seeds, with the range of several."""
    found = read_results(root, "encoder_neighbours")
    rows = []
    for row in found["rows"]:
        seeds = list(row["seeds"].values())
        shares = [_over([100 * seed[field] for seed in seeds]) for field in ("group", "subgroup")]
        rank = _over([seed["effective_rank"] for seed in seeds if "effective_rank" in seed])
        work = f"{row['flops'] / 1e12:.1f}" if row.get("flops") else ""
        rows.append([row["encoder"], row.get("steps", ""), work, len(seeds), *shares, rank])
    header = ["image encoder", "updates", "TFLOP", "seeds", "group, %", "subgroup, %", "effective rank"]
    return markdown_table(header, rows)


def _over(values: list[float]) -> str:
    """Formats the mean of some seeds' values, with their range."""
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


BLOCKS = {"encoder_neighbours": neighbours}
