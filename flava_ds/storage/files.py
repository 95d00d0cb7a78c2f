"""Where shards lie, and how their bytes are read at an offset: local files, or objects that fsspec reaches
(s3, gs, http, hf, memory, ...).
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flava_ds.config.plain_files import open_regular, read_small
from flava_ds.errors import DataError
from flava_ds.storage.retry import DEFAULT, ReadPolicy, ShortRead, call, call_once, without_query

log = logging.getLogger(__name__)

CHUNK_BYTES = 8 * 2**20
"""What is read from afar at once: long enough that a request's latency does not matter."""
CACHE_VARIABLE = "FLAVA_DS_CACHE"
"""Names the folder that the package keeps things in which it can make or fetch again."""
_OBJECT_STORAGE = ("s3://", "gs://", "gcs://", "abfs://", "az://", "memory://")


@dataclass(frozen=True, order=True)
class RemoteShard:
    """A shard that fsspec reaches; written without its query, which may hold a signature."""

    url: str
    policy: ReadPolicy = field(default=DEFAULT, compare=False, repr=False)

    def __str__(self) -> str:
        return self.url.split("?", 1)[0]

    @property
    def name(self) -> str:
        """The last component of its path."""
        return str(self).rsplit("/", 1)[-1]

    @property
    def parent(self) -> str:
        """The URL of its folder."""
        return str(self).rsplit("/", 1)[0]

    def beside(self, name: str) -> RemoteShard:
        """Returns another file of its folder."""
        _, mark, query = self.url.partition("?")
        return RemoteShard(f"{self.parent}/{name}{mark}{query}", self.policy)


@dataclass(frozen=True, order=True)
class PipedShard:
    """A shard that a shell command writes to its output: only where the user's own options say so, and only
    for streams.
    """

    command: str

    def __str__(self) -> str:
        return f"pipe:{self.command}"


Shard = Path | RemoteShard | PipedShard
Stamp = tuple[int, int | str]
"""Size in bytes, and what changes with the content: time of modification in ns, or the ETag of an object."""


class Readable(Protocol):
    """Bytes at an offset."""

    size: int

    def pread(self, size: int, offset: int) -> bytes: ...

    def close(self) -> None: ...


def stamp_of(shard: Shard) -> Stamp:
    """Returns what tells one state of a shard from another. Raises: DataError when the shard is not there."""
    if isinstance(shard, Path):
        try:
            stat = shard.stat()
        except OSError as error:
            raise DataError(f"shard '{shard}' cannot be read: {error.strerror}") from error
        return stat.st_size, stat.st_mtime_ns
    info = call(shard.url, "info", shard.policy)
    size = info.get("size")
    if not isinstance(size, int):
        raise DataError(
            f"shard '{shard}': the server does not tell its size; copy the shards to a folder or to "
            "object storage"
        )
    version = next(
        (
            info[key]
            for key in (
                "ETag",
                "etag",
                "md5Hash",
                "blob_id",
                "LastModified",
                "Last-Modified",
                "mtime",
                "created",
            )
            if info.get(key)
        ),
        "",
    )
    return size, str(version)


def open_shard(shard: Shard, stamp: Stamp | None = None) -> Readable:
    """Opens a shard; `stamp`, where it is known, saves the question for an object's size. Raises: DataError
    when it cannot be read.
    """
    if isinstance(shard, PipedShard):
        return PipedFile(shard)
    if isinstance(shard, Path):
        return LocalFile(shard)
    return RemoteFile(shard, (stamp or stamp_of(shard))[0])


class LocalFile:
    """A file; forked processes may share its descriptor, as no read moves a position."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = open_regular(path)
        except OSError as error:
            raise DataError(
                f"shard '{path}' cannot be read: {error.strerror}; was it moved while the run was going on?"
            ) from error
        self.path, self.size = path, os.fstat(self._descriptor).st_size

    def pread(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes at `offset`, fewer at the end of the file. Raises: DataError when the disk
        fails.
        """
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise DataError(f"shard '{self.path}' cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


class RemoteFile:
    """An object, read by ranges and kept nowhere."""

    def __init__(self, shard: RemoteShard, size: int) -> None:
        self.shard, self.size = shard, size

    def pread(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes at `offset`, fewer at the end of the object. Raises: DataError when all
        attempts fail.
        """
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        options = {
            "what": f"bytes {offset} to {end - 1} of ",
            "check": lambda data: self._check_length(data, end - offset),
        }
        return call(self.shard.url, "cat_file", self.shard.policy, **options, start=offset, end=end)

    def _check_length(self, data: bytes, wanted: int) -> None:
        """Raises ShortRead when bytes are missing, which another attempt may bring, and DataError when there
        are more than were asked for.
        """
        if len(data) < wanted:
            raise ShortRead(
                f"{len(data)} of {wanted} bytes came; the connection was cut, or the shard was replaced "
                "by a shorter one"
            )
        if len(data) > wanted:
            raise DataError(
                f"shard '{self.shard}': asked for {wanted} bytes and got {len(data)}; the server does "
                "not serve ranges: copy the shards elsewhere"
            )

    def close(self) -> None:
        """Nothing stays open."""


class PipedFile:
    """A command's output, read once from front to back; what is read next never lies before what was read
    last.
    """

    size = sys.maxsize
    """Not known before the end, where `pread` returns fewer bytes."""

    def __init__(self, shard: PipedShard) -> None:
        self.shard, self._at = shard, 0
        self._process = subprocess.Popen(
            shard.command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def pread(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes at `offset`, fewer at the end. Raises: DataError when the command fails."""
        while self._at < offset and (
            passed := self._process.stdout.read(min(CHUNK_BYTES, offset - self._at))
        ):
            self._at += len(passed)
        data = self._process.stdout.read(size) if self._at == offset else b""
        self._at += len(data)
        if len(data) < size and (status := self._process.wait()):
            raise DataError(
                f"shard '{self.shard}': the command ended with status {status}; see what it said above"
            )
        return data

    def close(self) -> None:
        """Ends the command if it is still writing."""
        self._process.stdout.close()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the shell and what it started
            self._process.wait()


class SequentialReader:
    """Reads a shard from front to back in chunks, hashing all of it if asked to; what is read next never lies
    before what was read last.
    """

    def __init__(self, file: Readable, checksum: bool) -> None:
        self._file, self.size = file, file.size
        self._digest = hashlib.sha256() if checksum else None
        self._start, self._chunk = 0, b""

    def pread(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes at `offset`, fewer at the end of the file."""
        found = b""
        while len(found) < size and offset < self.size:
            while offset >= self._start + len(self._chunk):
                self._advance(offset)
            place = offset - self._start
            piece = self._chunk[place : place + size - len(found)]
            found, offset = found + piece, offset + len(piece)
        return found

    def checksum(self) -> str | None:
        """Reads to the end; returns the SHA-256 of the whole file, None when it was not asked for."""
        if self._digest is None:
            return None
        while self._start + len(self._chunk) < self.size:
            self._advance(self.size)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _advance(self, wanted: int) -> None:
        """Takes the next chunk; without a checksum, the one that holds `wanted`."""
        following = self._start + len(self._chunk)
        self._start = following if self._digest else max(following, wanted)
        self._chunk = self._file.pread(CHUNK_BYTES, self._start)
        if not self._chunk:
            raise DataError("a shard became shorter while it was read")
        if self._digest:
            self._digest.update(self._chunk)


def fetch(file: RemoteShard) -> bytes:
    """Returns a whole small object. Raises: DataError when it is not there or cannot be read."""
    return call(file.url, "cat_file", file.policy)


def fetch_if_there(file: RemoteShard) -> bytes | None:
    """Returns a whole small object that need not be there: asks once, and takes any refusal for
    its absence."""
    try:
        return call_once(file.url, "cat_file", file.policy.timeout_s)
    # every protocol has errors of its own; storage without the right to list answers 403 for what is absent
    except Exception:
        return None


def read_if_there(file: Shard) -> bytes | None:
    """Returns a whole small file that need not be there: None for an absent object, OSError for an absent
    local file or one that is no regular file.
    """
    return read_small(file) if isinstance(file, Path) else fetch_if_there(file)


def put(file: RemoteShard, data: bytes) -> bool:
    """Writes an object, where writing one is all that happens (a hub would make a commit of it); False when
    it is not allowed.
    """
    if not file.url.startswith(_OBJECT_STORAGE):
        return False
    try:
        call_once(file.url, "pipe_file", file.policy.timeout_s, value=data)
    except Exception as error:  # every protocol has errors of its own
        log.info(
            "'%s' cannot be written (%s: %s); it is kept in the user's cache alone",
            file,
            type(error).__name__,
            without_query(str(error)),
        )
        return False
    return True


def user_cache() -> Path:
    """Returns the folder that CACHE_VARIABLE names, else the package's own in the user's cache. Source: XDG
    Base Directory Specification.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flava_ds"
