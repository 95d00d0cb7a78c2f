"""docs/comparison.md: what each family reached, from the results of `flava-ds compare`."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table
from flava_ds.campaigns.campaign import read_results
from flava_ds.campaigns.comparison import ROWS, table_rows


def comparison(root: Path) -> str:
    """Lists the rows so far. Raises: FileNotFoundError without any."""
    folder = root / "benchmarks" / "results" / "comparison" / "small"
    found = read_results(folder)
    if not found:
        raise FileNotFoundError(2, "no results", str(folder))
    header, *rows = table_rows(found)
    runs = sum(len(results) for results in found.values())
    table = markdown_table(header, [[f"`{row[0]}`" if row[0] in ROWS else row[0], *row[1:]] for row in rows])
    return f"{table}\n\n{runs} of {3 * len(ROWS)} runs are finished."


BLOCKS = {"comparison": comparison}
