"""Your own pictures with captions: a table with a row for each caption, as open_clip and ImageFolder have."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flava_ds.errors import DataError
from flava_ds.prepare.annotations import (
    NO_CAPTION,
    Annotated,
    Dropped,
    captioned,
    clean,
    json_lines,
    open_text,
)

log = logging.getLogger(__name__)

IMAGE_COLUMNS = ("file_name", "filepath", "image", "path", "file")
CAPTION_COLUMNS = ("caption", "text", "title")
BARE = "; pictures without captions are for `flava-ds prepare imagenet`, in a folder of folders"
TEXTS = "; texts without pictures are for `flava-ds prepare own_text`"


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields each picture once, in the order of its first row, with the captions of all its rows.

    The first of IMAGE_COLUMNS that a table has names the file below --images, the first of CAPTION_COLUMNS
    its caption, or in .jsonl a list of them. Other columns of a picture's first row go to its .json, integers
    as numbers. All tables are held in memory. An empty caption beside others is left out by itself.

    Raises: DataError naming the table and what it lacks, or the line that cannot be read.
    """
    found: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for path in paths:
        for line, row in enumerate(_rows(path)):
            name, caption = _column(path, row, IMAGE_COLUMNS), _column(path, row, CAPTION_COLUMNS)
            if line == 0:
                _say_unused(path, row, (name, caption))
            rest = {key: _number(value) for key, value in row.items() if key not in (name, caption)}
            captions, _ = found.setdefault(str(row[name]), ([], rest))
            texts = row[caption] if isinstance(row[caption], list) else [row[caption]]
            captions += map(clean, texts)
    for number, (name, (captions, rest)) in enumerate(found.items()):
        record = {"file": name, **rest}
        if any(captions):
            yield from (Dropped(NO_CAPTION, name) for caption in captions if not caption)
        yield captioned(captions, called=name, key=f"{number:09d}", images=(name,), record=record)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        yield from json_lines(path, strict=True)
        return
    if path.suffix not in (".csv", ".tsv"):
        raise DataError(f"own: '{path}' is no table; give a .csv, .tsv or .jsonl{TEXTS}")
    csv.field_size_limit(2**27)
    with open_text(path, strict=True) as stream:
        rows = csv.DictReader(stream, delimiter="," if path.suffix == ".csv" else "\t", strict=True)
        try:
            first = next(iter(rows.fieldnames or ()), "")
            if path.suffix == ".csv" and "\t" in first:
                raise DataError(f"own: '{path}' has tabs between its columns; rename it to .tsv")
            if path.suffix == ".csv" and ";" in first:
                raise DataError(f"own: '{path}' has semicolons between its columns; save it with commas")
            for row in rows:
                if None in row or None in row.values():
                    raise DataError(
                        f"own: '{path}', line {rows.line_num}: not one value for each of the "
                        f"{len(rows.fieldnames or ())} columns; a caption with the separator needs quotes"
                    )
                yield row
        except csv.Error as error:
            raise DataError(f"own: '{path}', line {rows.line_num}: {error}") from error


def _column(path: Path, row: dict[str, Any], names: Sequence[str]) -> str:
    name = next((name for name in names if name in row), None)
    if name is None:
        more = BARE if names == CAPTION_COLUMNS else ""
        raise DataError(
            f"own: '{path}' has the columns {', '.join(row)}; it needs one of {', '.join(names)}{more}"
        )
    return name


def _say_unused(path: Path, row: dict[str, Any], used: tuple[str, str]) -> None:
    """Warns of columns that could have been meant instead of those that are used."""
    other = [name for name in (*IMAGE_COLUMNS, *CAPTION_COLUMNS) if name in row and name not in used]
    if other:
        log.warning(
            "own: '%s': pictures are those of column '%s' and captions those of '%s'; %s: only in the .json",
            *(path, *used, ", ".join(other)),
        )


def _number(value: Any) -> Any:
    """Returns an integer for its plain decimal form, and anything else as it is."""
    plain = isinstance(value, str) and len(value) < 19 and value.isascii() and value.isdigit()
    return int(value) if plain and str(int(value)) == value else value
