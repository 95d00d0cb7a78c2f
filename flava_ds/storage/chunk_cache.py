"""A size-limited LRU cache of remote shards on the local disk.

A part is an aligned range of CHUNK_BYTES of one version of one shard, in its own file that is written
atomically. All processes of a machine share the folder; a lock protects the record of its total size.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from flava_ds.errors import DataError
from flava_ds.storage.files import CHUNK_BYTES, RemoteFile, RemoteShard, Stamp

_ABANDONED_S = 3600
"""Age after which an unfinished temporary file is assumed to belong to a killed process."""
_KEPT_SHARE = 0.9
"""Share of the limit that stays after an eviction, so that not every new part triggers another one."""


class ChunkCache:
    """Reads remote shards through a folder of at most `limit_bytes`, plus one part in flight per process.

    Raises: DataError when the limit does not hold two parts.
    """

    def __init__(self, folder: Path, limit_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> None:
        if limit_bytes < 2 * chunk_bytes:
            raise DataError(
                f"data.cache_gib: {limit_bytes / 2**30:g} GiB cannot hold two parts of "
                f"{chunk_bytes / 2**20:g} MiB; allow more"
            )
        self.folder, self.limit_bytes, self.chunk_bytes = folder, limit_bytes, chunk_bytes

    def read(self, shard: RemoteShard, stamp: Stamp, offset: int, size: int) -> bytes:
        """Returns `size` bytes at `offset` of the version `stamp` of a shard, fewer at its end.

        Raises: DataError when the shard cannot be read or the folder cannot be written.
        """
        state = hashlib.sha256(f"{shard}\n{stamp}".encode()).hexdigest()[:32]
        end, pieces = min(offset + size, stamp[0]), []
        while offset < end:
            number, place = divmod(offset, self.chunk_bytes)
            length = min(end - offset, self.chunk_bytes - place)
            pieces.append(self._part(shard, stamp, state, number, place, length))
            offset += length
        return b"".join(pieces)

    def _part(
        self, shard: RemoteShard, stamp: Stamp, state: str, number: int, place: int, length: int
    ) -> bytes:
        """Returns a piece of one part, fetching the part first if it is not cached."""
        path = self.folder / f"{state}-{number:06d}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise DataError(
                f"the cache of remote shards '{self.folder}' cannot be read: {error.strerror}; set "
                "data.cache_directory to a folder that no other user writes to"
            ) from error
        else:
            try:
                os.utime(descriptor)
                data = os.pread(descriptor, length, place)
            finally:
                os.close(descriptor)
            if len(data) == length:
                return data
            path.unlink(missing_ok=True)  # cut short when the machine went down
        data = RemoteFile(shard, stamp[0]).pread(self.chunk_bytes, number * self.chunk_bytes)
        self._keep(path, data)
        return data[place : place + length]

    def _keep(self, path: Path, data: bytes) -> None:
        """Makes room, then writes a part and renames it into place.

        Does not use storage/atomic.py: the rename happens under the lock, and only if no other process was
        faster.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".part-")
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(data)
                with open(self.folder / ".total", "a+b") as total:
                    fcntl.flock(total, fcntl.LOCK_EX)
                    if not path.exists():
                        self._account(total, len(data))
                        os.replace(temporary, path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                f"the cache of remote shards '{self.folder}' cannot be written: {error.strerror}; set "
                "data.cache_directory"
            ) from error

    def _account(self, file: BinaryIO, added: int) -> None:
        """Adds to the total size that `file` records and evicts old parts if needed.

        Counts the folder if it has no total yet.
        """
        file.seek(0)
        text = file.read()
        total = int(text) if text.isdigit() else sum(size for _, size, _ in self._parts())
        if total + added > self.limit_bytes:
            total = self._make_room(added)
        file.truncate(0)
        file.write(str(total + added).encode())
        file.flush()

    def _make_room(self, needed: int) -> int:
        """Evicts the least recently read parts and what killed processes left; returns the bytes kept."""
        for part in self.folder.glob(".part-*"):
            with suppress(FileNotFoundError):  # its writer was alive and has just finished
                if time.time() - part.stat().st_mtime > _ABANDONED_S:
                    part.unlink()
        parts = sorted(self._parts())
        total = sum(size for _, size, _ in parts)
        target = min(int(_KEPT_SHARE * self.limit_bytes), self.limit_bytes - needed)
        for _, size, path in parts:
            if total <= target:
                break
            os.unlink(path)
            total -= size
        return total

    def _parts(self) -> list[tuple[int, int, str]]:
        """Lists the cached parts: time of the last read in ns, size in bytes, path."""
        with os.scandir(self.folder) as entries:
            found = [(entry.stat(), entry) for entry in entries if not entry.name.startswith(".")]
        return [(stat.st_mtime_ns, stat.st_size, entry.path) for stat, entry in found]
