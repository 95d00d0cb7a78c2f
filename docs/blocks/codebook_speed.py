"""docs/codebook.md: the encoder's time in three layouts, from benchmarks/results/codebook_speed.json."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results


def codebook_speed(root: Path) -> str:
    """One row per device and way, with the time of NCHW over its own and the share of equal codes."""
    rows = []
    for entry in read_results(root, "codebook_speed"):
        where = f"{entry['device']}, {entry['threads']} threads, {entry['dtype']}"
        for way, seconds in entry["seconds"].items():
            each = f"{1e3 * seconds / entry['images']:,.0f}"
            rows.append([where, way, each, f"{entry['ratio'][way]:.2f}", f"{entry['equal'][way]:.2%}"])
    return markdown_table(["device", "way", "ms an image", "times as fast as NCHW", "equal codes"], rows)


BLOCKS = {"codebook_speed": codebook_speed}
