"""Opens untrusted files and parses untrusted JSON, with limits.

A FIFO or device in place of a file could block a command forever or trigger an action; endless JSON would
fill the memory.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 256 * 2**20
"""More than the state.json of a model with a million parameter tensors."""


def open_regular(path: Path) -> int:
    """Opens a file for reading and returns its descriptor.

    Raises: OSError when there is none, or when it is a FIFO, a device, a socket or a folder.
    """
    # check before opening, because merely opening a device can have effects
    _refuse_irregular(os.stat(path).st_mode, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode, path)  # it may have been replaced in between
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_irregular(mode: int, path: Path) -> None:
    """Raises OSError for anything but a regular file."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """Returns the contents of a file of at most `most` bytes.

    Raises: OSError when it cannot be opened, is not a regular file, or is longer.
    """
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most else file.read(size + 1)
        if size < len(data):  # it has grown meanwhile, or has no size, as under /proc
            data += file.read(most + 1 - len(data))
    if max(size, len(data)) > most:
        raise OSError(errno.EFBIG, f"has more than {most} bytes", str(path))
    return data


def loads(text: str | bytes) -> Any:
    """Parses JSON.

    Raises: ValueError when it is invalid, nested too deeply, or repeats a key in one object: the first value
    would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object, rejecting repeated keys."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key '{key}' occurs twice in one object")
            seen.add(key)
    return made
