"""The one way in which files of others are opened, and JSON of others is read: with limits.

A FIFO or a device in the place of a file would hold a command for ever or do something; JSON without an end
would fill the memory.
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
    # before it is opened: that alone may do something to a device
    _refuse_irregular(os.stat(path).st_mode, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode, path)  # it may have been exchanged in between
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_irregular(mode: int, path: Path) -> None:
    """Raises OSError for what is no regular file."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """Returns a whole file of at most `most` bytes.

    Raises: OSError when it cannot be opened, is no regular file, or is longer.
    """
    with open(open_regular(path), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"has more than {most} bytes", str(path))
    return data


def loads(text: str | bytes) -> Any:
    """Reads JSON.

    Raises: ValueError where it is none, is nested too deeply, or has a key twice in one object: the first
    would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of its pairs."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key '{key}' occurs twice in one object")
            seen.add(key)
    return made
