"""docs/observability.md: the fields of a log record, from the table that the code writes by."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table
from flava_ds.watching.log_fields import FIELDS


def log_fields(_: Path) -> str:
    """Lists key, unit, name for Prometheus, and meaning of every field."""
    rows = [
        [
            f"`{field.name}`",
            field.unit or "-",
            "-" if field.kind == "text" else f"`{field.metric}`",
            field.meaning,
        ]
        for field in FIELDS
    ]
    return markdown_table(["key", "unit", "for Prometheus", "meaning"], rows)


BLOCKS = {"log_fields": log_fields}
