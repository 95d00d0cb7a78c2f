"""Random access to shards: local files, or objects that fsspec reads (s3, gs, http, hf, memory, ...)."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flava_ds.config.plain_files import open_regular
from flava_ds.errors import DataError, UserError, ulimit_or
from flava_ds.plain_text import without_secrets
from flava_ds.processes import sign_of_life
from flava_ds.storage.retry import DEFAULT, ReadPolicy, ShortRead, call

CHUNK_BYTES = 8 * 2**20
"""Size of one remote read: large enough to hide the latency of a request."""
FIRST_BYTES, GROWTH = 64 * 2**10, 8
"""Size of a first read, as a header may be all that is wanted, and by how much each next one is larger."""
CACHE_VARIABLE = "FLAVA_DS_CACHE"
"""Environment variable that names the folder for data that can be computed or fetched again."""

SAFE_MEMBERS = getattr(tarfile, "data_filter", lambda member, _: member)
"""For TarFile.extraction_filter: Python 3.11.2, Debian 12's, has none, so archives are verified before."""


@dataclass(frozen=True, order=True)
class RemoteShard:
    """A shard read through fsspec. Its text omits the parts of the URL that may be secret."""

    url: str
    policy: ReadPolicy = field(default=DEFAULT, compare=False, repr=False)

    def __str__(self) -> str:
        return without_secrets(self.url)

    @property
    def name(self) -> str:
        """The last component of its path."""
        return str(self).rsplit("/", 1)[-1]

    @property
    def parent(self) -> str:
        """The URL of its folder."""
        return str(self).rsplit("/", 1)[0]

    def beside(self, name: str) -> RemoteShard:
        """Returns another file of the same folder."""
        path, mark, query = self.url.partition("?")
        return RemoteShard(f"{path.rsplit('/', 1)[0]}/{name}{mark}{query}", self.policy)


@dataclass(frozen=True, order=True)
class PipedShard:
    """A shard that a shell command writes to stdout: only for streams, and only if an option asks for it."""

    command: str

    def __str__(self) -> str:
        return f"pipe:{self.command}"


Shard = Path | RemoteShard
StreamedShard = Shard | PipedShard
Stamp = tuple[int, int | str]
"""A shard's version: its size in bytes, and its modification time in ns or its ETag."""


class Readable(Protocol):
    """Bytes at an offset."""

    size: int

    def pread(self, size: int, offset: int) -> bytes: ...

    def close(self) -> None: ...


def without_links(path: str | Path, folder_of: Callable[[str], str] = os.path.realpath) -> str:
    """Returns the absolute path of a file without links. `folder_of` resolves its folder: whoever asks for
    many files resolves a folder once, instead of each part of its path for each of them.
    """
    folder, name = os.path.split(path)
    place = os.path.join(folder_of(folder), name)
    return os.path.realpath(place) if os.path.islink(place) else place


def stamp_of(shard: Shard) -> Stamp:
    """Returns the version of a shard. Raises: DataError when the shard does not exist."""
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
            f"shard '{shard}': the server does not report its size; copy the shards to a folder or to "
            "object storage"
        )
    keys = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "Last-Modified", "mtime", "created")
    version = next((info[key] for key in keys if info.get(key)), "")
    return size, str(version)


def open_shard(shard: StreamedShard, stamp: Stamp | None = None) -> Readable:
    """Opens a shard; a known `stamp` saves the request for an object's size.

    Raises: DataError when it cannot be read.
    """
    if isinstance(shard, PipedShard):
        return PipedFile(shard)
    if isinstance(shard, Path):
        return LocalFile(shard)
    return RemoteFile(shard, (stamp or stamp_of(shard))[0])


class LocalFile:
    """A local file. Forked processes can share its descriptor because `pread` moves no file position."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = open_regular(path)
        except OSError as error:
            way_out = ulimit_or(error, "was it moved during the run?")
            raise DataError(f"shard '{path}' cannot be read: {error.strerror}; {way_out}") from error
        stat = os.fstat(self._descriptor)
        self.path, self.size = path, stat.st_size
        self.stamp: Stamp = stat.st_size, stat.st_mtime_ns

    def pread(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes at `offset`, fewer at the end of the file.

        Raises: DataError when the disk fails.
        """
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise DataError(f"shard '{self.path}' cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


class RemoteFile:
    """A remote object, read by byte ranges without a cache."""

    def __init__(self, shard: RemoteShard, size: int) -> None:
        self.shard, self.size = shard, size

    def pread(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes at `offset`, fewer at the end of the object.

        Raises: DataError when all attempts fail.
        """
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        return call(
            self.shard.url,
            "cat_file",
            self.shard.policy,
            what=f"bytes {offset} to {end - 1} of ",
            check=lambda data: self._check_length(data, end - offset),
            start=offset,
            end=end,
        )

    def _check_length(self, data: bytes, wanted: int) -> None:
        """Checks the length of an answer.

        Raises: ShortRead when bytes are missing, which a retry may fix; DataError when there are too many.
        """
        if len(data) < wanted:
            raise ShortRead(
                f"got {len(data)} of {wanted} bytes; the connection was cut, or a shorter shard replaced "
                "this one"
            )
        if len(data) > wanted:
            raise DataError(
                f"shard '{self.shard}': asked for {wanted} bytes and got {len(data)}; the server does "
                "not support range requests: copy the shards elsewhere"
            )

    def close(self) -> None:
        """Does nothing: no connection stays open."""


class ReadAhead:
    """A file that is read in chunks, for small reads that mostly move forward: a server takes about as long
    to answer for a few bytes as for a chunk of them.

    The first chunk has FIRST_BYTES, each next one GROWTH times as many, up to CHUNK_BYTES.
    """

    def __init__(self, file: Readable) -> None:
        self._file, self.size = file, file.size
        self._start, self._chunk, self._ahead = 0, b"", FIRST_BYTES

    def pread(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes at `offset`, fewer at the end of the file. Raises: what the file raises."""
        if size >= CHUNK_BYTES:
            return self._file.pread(size, offset)
        if offset < self._start or offset + size > self._start + len(self._chunk):
            self._start, self._chunk = offset, self._file.pread(max(size, self._ahead), offset)
            self._ahead = min(CHUNK_BYTES, GROWTH * self._ahead)
        place = offset - self._start
        return self._chunk[place : place + size]

    def close(self) -> None:
        """Closes the file and forgets what was read ahead."""
        self._file.close()
        self._chunk = b""


class PipedFile:
    """The output of a command, read once from front to back: offsets must not decrease."""

    size = sys.maxsize
    """Unknown until the end, where `pread` returns fewer bytes."""

    def __init__(self, shard: PipedShard) -> None:
        self.shard, self._at = shard, 0
        self._process = subprocess.Popen(
            shard.command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None  # it is a PIPE
        self._output = self._process.stdout

    def pread(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes at `offset`, fewer at the end. Raises: DataError when the command fails."""
        while self._at < offset and (passed := self._output.read(min(CHUNK_BYTES, offset - self._at))):
            self._at += len(passed)
        data = self._output.read(size) if self._at == offset else b""
        self._at += len(data)
        if len(data) < size and (status := self._process.wait()):
            raise DataError(
                f"shard '{self.shard}': the command exited with status {status}; see its output above"
            )
        return data

    def close(self) -> None:
        """Kills the command if it is still running."""
        self._output.close()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the shell and its children
            self._process.wait()


class SequentialReader:
    """Reads a shard front to back in chunks and optionally hashes it: offsets must not decrease."""

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
        """Reads to the end and returns the SHA-256 of the whole file, or None if none was requested."""
        if self._digest is None:
            return None
        while self._start + len(self._chunk) < self.size:
            self._advance(self.size)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _advance(self, wanted: int) -> None:
        """Reads the next chunk or, without a checksum, skips to the one that holds `wanted`."""
        following = self._start + len(self._chunk)
        self._start = following if self._digest else max(following, wanted)
        self._chunk = self._file.pread(CHUNK_BYTES, self._start)
        if not self._chunk:
            raise DataError("a shard shrank while it was being read")
        sign_of_life()  # a shard of a gigabyte may take minutes
        if self._digest:
            self._digest.update(self._chunk)


def sha256_of(path: Path) -> str:
    """Returns a local file's SHA-256 in hexadecimal. Raises: OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache() -> Path:
    """Returns the folder that CACHE_VARIABLE names, or the package's folder in the user's cache.

    Raises: UserError when the user has no home. Source: XDG Base Directory Specification.
    """
    try:
        if named := os.environ.get(CACHE_VARIABLE):
            return Path(named).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flava_ds"
    except RuntimeError as error:  # a container with a user that it does not know, and without HOME
        raise UserError(
            f"user {os.getuid()} has no home here; set {CACHE_VARIABLE} to a folder that may be written"
        ) from error
