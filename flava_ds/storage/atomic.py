"""Atomic writes: a file appears complete or not at all, even if the writing process is killed."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from flava_ds.errors import UserError

log = logging.getLogger(__name__)

PARTIAL = ".partial"
"""Suffix of an incomplete file. Only a kill or a power failure leaves one behind; it may be deleted."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system without locks."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a file that is full."""
_SHOWN = 40
"""Characters of the file name that its temporary keeps; more could exceed the file system's limit."""


@contextmanager
def replacing(path: Path, *, durable: bool = False, alone: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the same folder and renames it to `path` when the block ends.

    Creates the folder if needed. An error removes the temporary file and leaves `path` as it was. The
    temporary name is unique, so processes can write the same file concurrently: the last one wins. With
    `alone`, the temporary name is fixed, a second writer is refused, and the next attempt overwrites a large
    file that a kill left behind. A device, or the pipe of a link, is written to. With `durable`, the file
    and its folder entry are on disk before this returns.

    Raises: OSError when the file cannot be written; BlockingIOError, which is one, for a second writer.
    """
    if path.is_char_device() or path.is_symlink() and path.is_fifo():
        yield path  # /dev/null and /dev/stdout must not become files
        return
    unique = "" if alone else f".{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name((path.name if alone else f".{path.name[:_SHOWN]}") + unique + PARTIAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with hold(temporary) if alone else nullcontext():
            try:
                yield temporary
                if durable:
                    sync(temporary)
                temporary.replace(path)
            except BaseException:
                with suppress(OSError):  # report the first error, not a failed cleanup
                    temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        unnamed = error.filename is None and error.errno in NO_ROOM  # a write to an open file names none
        if (
            unnamed
            or error.filename in (temporary, str(temporary))
            and not isinstance(error, BlockingIOError)
        ):
            error.filename = str(path)  # which the user knows
        raise
    if durable:
        sync(path.parent)


def hold(path: Path) -> IO[bytes]:
    """Locks a file, made if needed, against other holders until it is closed or this process ends.

    Whoever holds it may rename or delete it. On a file system without locks, warns and locks nothing.

    Raises: BlockingIOError when another holds it; OSError when it cannot be made.
    """
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in NO_LOCKS:
                log.warning(
                    "'%s' cannot be locked (%s): let no other process write there", path, error.strerror
                )
                return file
            file.close()
            if isinstance(error, BlockingIOError):
                said = "another process is writing there"
                raise BlockingIOError(error.errno, said, str(path)) from None
            raise
        file.close()  # its holder has renamed or deleted it in between


def write_whole(path: Path, data: str | bytes, *, durable: bool = False) -> None:
    """Writes a file through `replacing`; text becomes UTF-8.

    Raises: OSError when the file cannot be written.
    """
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any, *, indent: int | None = 2, durable: bool = False) -> None:
    """Writes plain values as JSON through `replacing`."""
    write_whole(path, json.dumps(value, indent=indent) + "\n", durable=durable)


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
