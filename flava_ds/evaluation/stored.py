"""Pictures in files, with what tells a later process that the files are others by now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from flava_ds.errors import DataError

Load = Callable[[int], Tensor | bytes]
"""Returns a row's image: decoded [3 H W] uint8, or encoded bytes. Called from several threads."""


def read_bytes(file: Path) -> bytes:
    """Reads an image file. Raises: DataError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); get the file again") from error


@dataclass(frozen=True)
class Files:
    """Loads pictures that have a file each."""

    paths: Sequence[Path]
    read: Callable[[Path], Tensor | bytes] = read_bytes

    def __call__(self, row: int) -> Tensor | bytes:
        return self.read(self.paths[row])


@dataclass(frozen=True)
class Parts:
    """Loads pictures of which many share a file."""

    load: Load
    paths: Sequence[Path]

    def __call__(self, row: int) -> Tensor | bytes:
        return self.load(row)


def chosen(load: Load, rows: Sequence[int]) -> Load:
    """Returns what loads the chosen rows."""
    if isinstance(load, Files):
        return Files([load.paths[row] for row in rows], load.read)
    part: Load = lambda row: load(rows[row])  # noqa: E731
    return Parts(part, load.paths) if isinstance(load, Parts) else part


def state_of(load: Load | None) -> str:
    """Hashes sizes and times of change of the files behind pictures: empty for what lies in no files."""
    return _hash(load.paths) if isinstance(load, Files | Parts) else ""


def _hash(paths: Iterable[Path]) -> str:
    """Hashes files by size and time of change; one that is not there is told when it is read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            continue
        digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
