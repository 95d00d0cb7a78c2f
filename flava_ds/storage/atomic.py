"""Atomic writes: a file appears complete or not at all, even if the writing process is killed."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flava_ds.errors import UserError

PARTIAL = ".partial"
"""Suffix of an incomplete file. Only a kill or a power failure leaves one behind; it may be deleted."""
_SHOWN = 40
"""Characters of the file name that its temporary keeps; more could exceed the file system's limit."""


@contextmanager
def replacing(path: Path, *, durable: bool = False, alone: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the same folder and renames it to `path` when the block ends.

    Creates the folder if needed. An error removes the temporary file and leaves `path` as it was. The
    temporary name is unique, so processes can write the same file concurrently: the last one wins. With
    `alone`, the caller guarantees that it is the only writer; the temporary name is then fixed, and the next
    attempt overwrites a large file that a kill left behind. With `durable`, the file and its folder entry are
    on disk before this returns.

    Raises: OSError when the file cannot be written.
    """
    unique = "" if alone else f".{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name((path.name if alone else f".{path.name[:_SHOWN]}") + unique + PARTIAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # report the first error, not a failed cleanup
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def write_whole(path: Path, data: str | bytes, *, durable: bool = False) -> None:
    """Writes a file through `replacing`; text becomes UTF-8.

    Raises: OSError when the file cannot be written.
    """
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def check_writable(folder: Path, option: str) -> None:
    """Raises UserError if nothing can be written to a folder that an option names: better now than when the
    work is done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{option}: {folder} cannot be written ({error.strerror}); give another folder"
        ) from error


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
