"""Files that appear whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
"""Ends the name of a file that is not whole yet. Only a kill or a power failure leaves one behind; it may be
deleted.
"""
_SHOWN = 40
"""Most characters of a file's name in that of its temporary: the whole name may be as long as the file system
allows.
"""


@contextmanager
def replacing(path: Path, *, durable: bool = False, alone: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which is made if need be; what is written there becomes
    `path` at the end.

    An error removes the temporary file and leaves `path` as it was. The temporary name is unique, so that
    processes that write one file at the same time disturb nobody: the last one wins. With `alone`, the caller
    says that nobody else writes `path`; the temporary name is then fixed, and a large file that a kill left
    behind is written over by the next attempt. With `durable`, file and folder entry are on disk before this
    returns.

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
        with suppress(OSError):  # the first error is the one to tell
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


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
