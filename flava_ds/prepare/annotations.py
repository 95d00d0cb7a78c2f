"""The common form of all corpora, one entry per image or passage, and readers for published file formats."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from flava_ds.errors import DataError

NO_CAPTION = "empty caption"
NOT_ENGLISH = "not English"
TOO_SHORT = "two words or fewer"
_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """One image with its captions, or one passage of text.

    `key` names its members in the shard. `images` are candidate paths below the image folder; the first that
    exists is used. `file` is an image found by walking a folder instead.
    """

    key: str
    captions: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    file: Path | None = None
    url: str | None = None
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """An entry that is left out, and the reason; `name` is what its annotations call it, if anything."""

    reason: str
    name: str = ""


def captioned(captions: Iterable[str], *, called: str = "", **known: Any) -> Annotated | Dropped:
    """Returns an entry with its captions that are not empty, or leaves it out if there are none; `known` are
    the other fields of Annotated, `called` is that of Dropped.
    """
    kept = tuple(caption for caption in captions if caption)
    return Annotated(captions=kept, **known) if kept else Dropped(NO_CAPTION, called)


def clean(text: Any) -> str:
    """Collapses a caption to one line of valid UTF-8; empty for anything but text."""
    if not isinstance(text, str):
        return ""
    return " ".join(text.encode("utf-8", "ignore").decode().replace("\0", " ").split())


@contextmanager
def open_text(path: Path, *, strict: bool = False) -> Iterator[TextIO]:
    """Opens a UTF-8 file, with or without a byte order mark, decompressing .gz and .bz2 on the fly.

    Other bytes become replacement characters, as published files hold a few; with `strict` they are refused.

    Raises: DataError that names the file, also while it is read, and the line of a byte that is refused.
    """
    openers: dict[str, Callable[..., TextIO]] = {".gz": gzip.open, ".bz2": bz2.open}
    opener, errors = openers.get(path.suffix, open), "strict" if strict else "replace"
    try:
        with opener(path, "rt", encoding="utf-8-sig", errors=errors, newline="") as stream:
            yield stream
    except UnicodeDecodeError as error:
        before = error.object[max(0, error.start - 20) : error.start].decode("utf-8", "replace")
        raise DataError(
            f"annotations '{path}'{_line_not_utf8(path, opener)}: not UTF-8: byte "
            f"{error.object[error.start]:#04x} after {before!r}; save it as UTF-8 (a spreadsheet calls that "
            "'CSV UTF-8')"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise DataError(f"annotations '{path}' cannot be read: {said}") from error


def _line_not_utf8(path: Path, opener: Callable[..., TextIO]) -> str:
    """Returns ", line N" of the first line that is not UTF-8; "" where it cannot be read again."""
    if not path.is_file():  # a pipe
        return ""
    with (
        suppress(OSError, EOFError, zlib.error),
        opener(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        for number, line in enumerate(stream, 1):
            try:
                line.encode()
            except UnicodeEncodeError:
                return f", line {number}"
    return ""


def load_json(path: Path, *fields: str, strict: bool = False) -> dict[str, Any]:
    """Reads a JSON object that has `fields`; `strict` is that of `open_text`.

    Raises: DataError as `require` does, or for what is no JSON.
    """
    with open_text(path, strict=strict) as stream:
        try:
            value = json.load(stream)
        except UnicodeDecodeError:
            raise
        except (ValueError, EOFError, OSError, RecursionError) as error:
            raise DataError(f"annotations '{path}': not JSON: {error}") from error
    require(path, value, *fields)
    return value


def require(path: Path, value: Any, *fields: str) -> None:
    """Raises DataError that names the file and a field that its object lacks, or what is no object."""
    wrong = "" if isinstance(value, dict) else f"{type(value).__name__} instead of an object"
    missing = [] if wrong else [f"no field '{name}'" for name in fields if name not in value]
    if wrong or missing:
        raise DataError(
            f"annotations '{path}': {wrong or missing[0]}; is this the file that docs/data.md names?"
        )


def json_lines(path: Path, *, strict: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the object on every line; `strict` is that of `open_text`.

    Raises: DataError that names the file and line.
    """
    yield from (value for _, value in numbered_json_lines(path, strict=strict))


def numbered_json_lines(path: Path, *, strict: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields what `json_lines` does, each with the number of its line, from 1 on."""
    with open_text(path, strict=strict) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"annotations '{path}', line {number}: not JSON: {error}") from error
                if not isinstance(value, dict):
                    raise DataError(
                        f"annotations '{path}', line {number}: {type(value).__name__} instead of an object"
                    )
                yield number, value


def json_array(path: Path) -> Iterator[Any]:
    """Yields the elements of a JSON array one by one: gigabytes of file need the memory of one element.

    Raises: DataError that names the file and where the array is invalid.
    """
    decoder = json.JSONDecoder()
    with open_text(path) as stream:
        buffer, done = "", 0
        while not buffer and (more := stream.read(_CHUNK)):
            buffer = more.lstrip()
        if not buffer.startswith("["):
            raise DataError(f"annotations '{path}': begins with {buffer[:20]!r} instead of an array")
        buffer = buffer[1:]
        while True:
            buffer = buffer.lstrip().removeprefix(",").lstrip()
            if buffer.startswith("]"):
                return
            try:
                value, end = decoder.raw_decode(buffer)
            except ValueError as error:
                value, end = error, len(buffer)
            if end == len(buffer):  # incomplete, or perhaps a number that continues
                more = stream.read(max(_CHUNK, len(buffer)))
                if not more:
                    raise DataError(f"annotations '{path}': the array ends early, after {done} elements")
                buffer += more
                continue
            buffer, done = buffer[end:], done + 1
            yield value


def table(path: Path, columns: Sequence[str], *, quoted: bool = False) -> Iterator[dict[str, str]]:
    """Yields the rows of a tab-separated file.

    A first line with all column names is a header and gives their order; otherwise they are as in `columns`.

    Raises: DataError that names the file and a row with the wrong number of columns.
    """
    csv.field_size_limit(2**27)
    with open_text(path) as stream:
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
        names: Sequence[str] | None = None
        for number, row in enumerate(rows, 1):
            if names is None:
                names = row if set(columns) <= set(row) else columns
                if names is row:
                    continue
            if len(row) != len(names):
                raise DataError(
                    f"annotations '{path}', row {number}: {len(row)} columns instead of {len(names)} "
                    f"({', '.join(names)})"
                )
            yield dict(zip(names, row, strict=True))


def name_in(url: str) -> str:
    """Returns the last part of a URL's path; "" for what is no URL."""
    try:
        return Path(urlsplit(url.strip()).path).name
    except ValueError:  # a bracket that opens no address of IPv6
        return ""


def position_paths(position: int) -> tuple[str, ...]:
    """Returns where img2dataset stores row `position` of a list with --output_format files: SHARD/KEY.jpg."""
    shard, row = divmod(position, 10_000)
    return (f"{shard:05d}/{shard:05d}{row:04d}.jpg",)
