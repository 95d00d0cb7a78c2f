"""Tables of samples as folders of plain arrays in the user's cache, which all processes of a machine map.

A table that is mapped is in memory once, whatever the number of ranks, and is there at the next start. A
folder appears whole or not at all. Its name holds a hash of what it is a table of, and one of the versions of
the shards.
"""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.config.plain_files import loads
from flava_ds.storage.atomic import PARTIAL, hold, sync
from flava_ds.storage.files import user_cache

log = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]

_POLL_S = 1.0
HEADER = "table.json"
_DTYPES = {"keys": "<u1", "key_ends": "<i8", "shard_ends": "<i8", "offset": "<i8", "size": "<u4"}
"""By the last part of an array's name."""
_UNUSED_S = 30 * 24 * 3600
"""A table that no run has started with for so long goes, and so does what a killed writer left behind."""


def folder_of(of: str, version: str) -> Path:
    """Returns the folder for a table of `of` in this version, both hashes.

    Raises: UserError without a home.
    """
    return user_cache() / "tables" / f"{of}-{version}"


def load(folder: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """Returns the mapped arrays of a table and what its writer said of them; None unless it is whole."""
    try:
        header = loads((folder / HEADER).read_bytes())
        arrays = {name: _mapped(folder / name, size) for name, size in header["bytes"].items()}
        return arrays, header["said"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def used(folder: Path) -> None:
    """Notes that a run starts with a table."""
    with suppress(OSError):  # of another user, say
        os.utime(folder / HEADER)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time make a table, also of several machines that share the user's home; waits.

    Raises: OSError when the cache cannot be written.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        try:
            held = hold(lock)
            break
        except BlockingIOError:
            if not told:
                log.info("another process makes the table of samples in '%s'; waiting for it", folder.parent)
            told = True
            time.sleep(_POLL_S)
    with held:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def store(folder: Path, parts: Iterable[Arrays], said: Callable[[Arrays], dict[str, Any]]) -> None:
    """Writes parts of a table end to end, with what `said` returns for the whole; removes older versions.

    Does nothing if another process has been quicker. Holds one part in memory at a time.

    Raises: OSError when it cannot be written, and whatever `parts` raises; then nothing is left behind.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
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
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _remove_older(folder)


def remove(folder: Path) -> None:
    """Removes a table; processes that have mapped it keep it."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove_older(folder: Path) -> None:
    """Removes tables of the same in other versions, and any that have not been used for long."""
    of = folder.name.split("-", 1)[0]
    for other in folder.parent.glob(f"{of}-*"):
        if other != folder:
            remove(other)
    for other in folder.parent.iterdir():
        if other != folder and other.is_dir() and _age_s(other) > _UNUSED_S:
            remove(other)


def _age_s(folder: Path) -> float:
    """Returns the seconds since a file in a folder was last used; 0 for one that has just gone."""
    try:
        return time.time() - max(file.stat().st_mtime for file in (folder, *folder.iterdir()))
    except OSError:
        return 0.0


def _mapped(file: Path, size: int) -> np.ndarray:
    """Maps an array, and has the system read it ahead. Raises: ValueError when it has another size."""
    with file.open("rb") as handle:
        if os.fstat(handle.fileno()).st_size != size:
            raise ValueError(f"'{file}' does not have {size} bytes")
        if not size:
            return np.empty(0, dtype=_dtype(file.name))
        mapped = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_WILLNEED)  # samples are read in random order, which would fault page by page
    return np.frombuffer(mapped, dtype=_dtype(file.name))


def _dtype(name: str) -> np.dtype:
    return np.dtype(_DTYPES[name.rsplit(".", 1)[-1]])
