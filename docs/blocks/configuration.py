"""The reference of the configuration, from the dataclasses and the strings below their fields."""

from __future__ import annotations

from pathlib import Path

from flava_ds.config.reference import reference


def configuration(_: Path) -> str:
    """Returns a table for every section and every variant of the package."""
    return "\n" + reference(own_variants=False) + "\n"


BLOCKS = {"configuration": configuration}
