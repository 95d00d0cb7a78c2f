"""docs/architecture.md: how well orders of the data mix and what they cost to read, from
`benchmarks/data_order_mixing.py`.
"""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results

COLUMNS = {
    "one shard": "same_shard",
    "near": "near",
    "again": "again",
    "shards in a batch": "shards",
    "rank correlation": "rank_correlation",
    "reads": "read_amplification_1",
}


def data_order(root: Path) -> str:
    """Compares the orders."""
    orders = read_results(root, "data_order_mixing")["orders"]
    return markdown_table(
        ["order", *COLUMNS],
        [[order["order"], *(number(name, order[name]) for name in COLUMNS.values())] for order in orders],
    )


def number(name: str, value: float) -> str:
    """Writes three digits, of correlations three decimals."""
    return format(value, ".3f" if name.endswith("correlation") else ".3g")


BLOCKS = {"data_order": data_order}
