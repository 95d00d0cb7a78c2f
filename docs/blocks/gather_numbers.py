"""docs/communication.md: the exchange of counts, from `benchmarks/gather_numbers.py`."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results


def gather_numbers(root: Path) -> str:
    """Compares our exchange with gloo's all_gather."""
    found = read_results(root, "gather_numbers")
    rows = []
    for row in found["rows"]:
        (gloo, gloo_cpu), (ours, ours_cpu), size = row["gloo"], row["ours"], row["processes"]
        messages = f"{size - 1} / {(size - 1).bit_length()}"
        rows.append(
            [size, messages, f"{gloo / 1e3:.2f}", f"{ours / 1e3:.2f}", f"{gloo / ours:.1f}"]
            + [f"{gloo_cpu / ours_cpu:.1f}"]
        )
    header = ["ranks", "messages in a row, gloo / ours", "gloo, ms", "ours, ms", "gloo / ours", "in CPU time"]
    text = f"All ranks on {found['cores']} cores ({found['machine']}), torch {found['torch']}:"
    return f"{text}\n\n{markdown_table(header, rows)}"


BLOCKS = {"gather_numbers": gather_numbers}
