"""Tables of samples as folders of plain arrays in the user's cache, which all processes of a machine map.

A table that is mapped is in memory once, whatever the number of ranks, and is there at the next start. A
folder appears whole or not at all. Its name holds a hash of what it is a table of, and one of the versions of
the shards.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import mmap
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.config.plain_files import loads
from flava_ds.processes import sign_of_life
from flava_ds.storage.atomic import NO_LOCKS, PARTIAL, hold, sync
from flava_ds.storage.files import user_cache

log = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]

HEADER = "table.json"
_LOCKED = "key_ends"
"""The array whose file a process locks, shared, as long as it maps a table: on NFS it must not go before."""
_ALWAYS = frozenset({"keys", "key_ends", "shard_ends"})
_DTYPES = {"keys": "<u1", "key_ends": "<i8", "shard_ends": "<i8", "offset": "<i8", "size": "<u4"}
"""By the last part of an array's name."""
_OURS = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}|\.[0-9a-f]{16}-[0-9a-f]{16}\.\d+-[0-9a-f]{8}\.partial")
"""Names of tables, and of what is no table yet, or no longer."""
_POLL_S, _PATIENCE_S = 1.0, 300.0
"""How often a process that waits for another's table looks, and how long it waits while nothing is added."""
_SUPERSEDED_S, _UNUSED_S = 3600.0, 30 * 24 * 3600.0
"""A table that nobody maps goes if no run has started with it for so long: another version of a newer one,
and any. An hour, as machines that share a home may have shards of other versions.
"""


def folder_of(of: str, version: str) -> Path:
    """Returns the folder for a table of `of` in this version, both hashes.

    Raises: UserError without a home.
    """
    return user_cache() / "tables" / f"{of}-{version}"


def load(folder: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """Returns the mapped arrays of a table and what its writer said of them; None unless it is whole."""
    try:
        header = loads((folder / HEADER).read_bytes())
        sizes = header["bytes"]
        locked_first = sorted(sizes, key=lambda name: name != _LOCKED)
        arrays = {name: _mapped(folder / name, sizes[name]) for name in locked_first}
        return (arrays, header["said"]) if _ALWAYS <= arrays.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def used(folder: Path) -> None:
    """Notes that a run starts with a table, and removes those that nobody uses."""
    with suppress(OSError):  # of another user, say
        os.utime(folder / HEADER)
    _remove_unused(folder)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time make a table, also of several machines that share the user's home, and
    whatever its version; waits.

    Raises: OSError when the cache cannot be written, or another process adds nothing to its table for long.
    """
    of = _subject(folder)
    lock = folder.with_name(f".{of}.lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    deadline, written = None, -1
    while True:
        try:
            held: AbstractContextManager = hold(lock)
            break
        except PermissionError:  # of another user, who may be gone; at worst both make the table
            held = nullcontext()
            break
        except BlockingIOError:
            if deadline is None:
                log.warning("another process makes the table of samples and holds '%s'; waiting", lock)
            before, written = written, _written(folder.parent, of)
            if deadline is None or written != before:
                deadline = time.monotonic() + _PATIENCE_S
                sign_of_life()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"another process holds '{lock}' and has written nothing for {_PATIENCE_S:.0f} s"
                ) from None
            time.sleep(_POLL_S)
    with held:
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


def store(
    folder: Path,
    parts: Iterable[Arrays],
    said: Callable[[Arrays], dict[str, Any]],
    place: Callable[[], Path],
) -> Path:
    """Writes parts of a table end to end, with what `said` returns for the whole; removes what is not used.

    Returns where it is: what `place` says when all parts are there, as making them may change what names it
    (`folder`). Leaves a whole table as it is. Holds one part in memory at a time.

    Raises: OSError when it cannot be written, and whatever `parts` raises; then nothing is left behind.
    """
    temporary = _beside(folder)
    temporary.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            for part in parts:
                for name, array in part.items():
                    if name not in files:
                        files[name] = stack.enter_context((temporary / name).open("wb"))
                    files[name].write(array.astype(_dtype(name), copy=False).data)
        sizes = {name: (temporary / name).stat().st_size for name in files}
        whole = {name: _mapped(temporary / name, size) for name, size in sizes.items()}
        (temporary / HEADER).write_text(json.dumps({"bytes": sizes, "said": said(whole)}))
        for file in (*temporary.iterdir(), temporary):
            sync(file)  # else a power failure could leave arrays of zeros under a whole table's name
        folder = place()
        _name(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_unused(folder)
    return folder


def _subject(folder: Path) -> str:
    """Returns the part of a table's name that says what it is a table of."""
    return folder.name.lstrip(".").split("-", 1)[0]


def _written(tables: Path, of: str) -> int:
    """Counts the bytes of unfinished tables of `of`."""
    sizes = 0
    with suppress(OSError):  # one of them has just got its name: Python 3.11 looks into it all the same
        for file in tables.glob(f".{of}-*{PARTIAL}/*"):
            sizes += file.stat().st_size
    return sizes


def _beside(folder: Path) -> Path:
    """Returns a new name beside a table for what is no table yet, or no longer."""
    name = folder.name.lstrip(".").split(".", 1)[0]
    return folder.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")


def _name(temporary: Path, folder: Path) -> None:
    """Gives a table its name, unless there is a whole one; a damaged one makes way."""
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if load(folder) is None:
            damaged = _beside(folder)
            folder.rename(damaged)
            temporary.rename(folder)
            shutil.rmtree(damaged, ignore_errors=True)


def _remove_unused(folder: Path) -> None:
    """Removes other tables that no process maps and no run has started with for long, and what killed writers
    left behind.
    """
    with suppress(OSError):  # where they may not be listed, they stay
        for other in folder.parent.iterdir():
            most = _SUPERSEDED_S if _subject(other) == _subject(folder) else _UNUSED_S
            if other != folder and _OURS.fullmatch(other.name) and other.is_dir() and _age_s(other) > most:
                _remove_unmapped(other)


def _remove_unmapped(folder: Path) -> None:
    """Removes a table unless a process maps it. On a file system without locks nobody knows."""
    gone = _beside(folder)
    with suppress(OSError), ExitStack() as stack:  # mapped, or of another user
        with suppress(FileNotFoundError):  # its writer was killed before it wrote that
            locked = stack.enter_context((folder / _LOCKED).open("r+b"))  # NFS wants it writable
            with _where_there_are_locks():
                fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.rename(gone)  # so that nobody maps it who waits for the lock
    shutil.rmtree(gone, ignore_errors=True)


def _age_s(folder: Path) -> float:
    """Returns the seconds since a file in a folder was last used; 0 for one that has just gone."""
    try:
        return time.time() - max(file.stat().st_mtime for file in (folder, *folder.iterdir()))
    except OSError:
        return 0.0


def _mapped(file: Path, size: int) -> np.ndarray:
    """Maps an array, and has the system read it ahead. The map keeps a descriptor, and with it a lock.

    Raises: ValueError when it has another size; OSError, also when it has just been removed.
    """
    with file.open("rb") as handle:
        if os.fstat(handle.fileno()).st_size != size:
            raise ValueError(f"'{file}' does not have {size} bytes")
        if not size:
            return np.empty(0, dtype=_dtype(file.name))
        if file.name == _LOCKED:
            with _where_there_are_locks():
                fcntl.flock(handle, fcntl.LOCK_SH)  # who wants it alone has it for a moment, to remove it
            if not os.path.samestat(os.fstat(handle.fileno()), file.stat()):
                raise FileNotFoundError(errno.ENOENT, "was replaced", str(file))
        mapped = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_WILLNEED)  # samples are read in random order, which would fault page by page
    return np.frombuffer(mapped, dtype=_dtype(file.name))


@contextmanager
def _where_there_are_locks() -> Iterator[None]:
    """Passes over the error of a file system without locks."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _dtype(name: str) -> np.dtype:
    return np.dtype(_DTYPES[name.rsplit(".", 1)[-1]])
