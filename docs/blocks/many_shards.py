"""docs/data.md: what a source of many shards costs a rank, from `benchmarks/many_shards.py`."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results


def many_shards(root: Path) -> str:
    """Compares a table that each rank holds with one that all map."""
    found = read_results(root, "many_shards")
    named = {
        "held": "it reads all indexes and holds the table",
        "first start": "it stores the table, and maps it",
        "mapped": "it maps the stored table",
    }
    rows = [
        [
            named[name],
            f"{way['seconds']:.2g} s" if way["seconds"] < 1 else f"{way['seconds']:.0f} s",
            f"{way['own_mib']:,.0f} MiB",
            f"{way['look_up_us']:.0f} us",
        ]
        for name, way in found["ways"].items()
    ]
    text = (
        f"{found['shards']:,} shards of {found['samples'] / 1e6:.0f} million pairs on a local disk, one "
        f"process ({found['machine']}):"
    )
    header = ["a rank at its start", "waits", "memory of its own", "a look-up"]
    return f"{text}\n\n{markdown_table(header, rows)}"


BLOCKS = {"many_shards": many_shards}
