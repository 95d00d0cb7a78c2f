"""Conceptual Captions 3M (caption, URL) and 12M (URL, caption): tab-separated, with or without a header."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flava_ds.prepare.annotations import Annotated, Dropped, captioned, clean, position_paths, table


def read_cc3m(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields the rows of Train_GCC-training.tsv.

    Source: readme of google-research-datasets/conceptual-captions.
    """
    return _read(paths, "cc3m", ("caption", "url"))


def read_cc12m(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields the rows of cc12m.tsv. Source: readme of google-research-datasets/conceptual-12m."""
    return _read(paths, "cc12m", ("url", "caption"))


def _read(paths: Sequence[Path], name: str, columns: Sequence[str]) -> Iterator[Annotated | Dropped]:
    """Numbers the rows across all files, as img2dataset does with one list."""
    number = -1
    for path in paths:
        for row in table(path, columns):
            number += 1
            yield captioned(
                [clean(row["caption"])],
                key=f"{name}-{number:08d}",
                images=position_paths(number),
                url=row["url"],
            )
