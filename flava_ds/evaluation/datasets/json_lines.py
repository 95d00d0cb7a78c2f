"""Files with one JSON object per line, and the pictures they name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flava_ds.errors import DataError, MissingPicturesError

Row = TypeVar("Row")


def read_lines(file: Path, row: Callable[[dict[str, Any]], Row], expected: str) -> list[Row]:
    """Returns `row` of each line's object. `row` raises KeyError for a missing field and ValueError for an
    unusable one.

    Raises: DataError naming the file and the line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); expected {expected}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(row(json.loads(line)))
        except KeyError as error:
            raise DataError(f"{file}: line {number} has no {error}; expected {expected}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: line {number} cannot be used ({error}); expected {expected}") from error
    return found


def find_images(places: Sequence[Path], names: Iterable[str], origin: str) -> list[Path]:
    """Returns the paths of pictures, each from the first folder that has it.

    Raises: DataError if no folder exists; MissingPicturesError if a picture is in none of them.
    """
    folders = [place for place in places if place.is_dir()]
    there = " or ".join(str(place) for place in places)
    if not folders:
        raise DataError(f"the pictures are expected in {there}, which does not exist; {origin}")
    known: dict[str, Path] = {}
    for folder in reversed(folders):
        known |= {path.name: path for path in folder.iterdir()}
    found = [known.get(name) for name in names]
    lacking = [name for name, path in zip(names, found, strict=True) if path is None]
    if lacking:
        raise MissingPicturesError(
            f"{len(lacking)} pictures, {lacking[0]} among them, are not in {there}; {origin}"
        )
    return [path for path in found if path is not None]
