"""Folders that hold checkpoints: on a file system, or in any storage that fsspec supports (s3, gs, ...)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flava_ds.config.plain_files import read_small
from flava_ds.errors import CheckpointError, DataError
from flava_ds.plain_text import without_secrets
from flava_ds.storage.atomic import PARTIAL, write_whole
from flava_ds.storage.files import (
    LocalFile,
    Readable,
    ReadAhead,
    RemoteFile,
    RemoteShard,
    stamp_of,
)
from flava_ds.storage.retry import file_system
from flava_ds.storage.small_objects import OBJECT_STORAGE

PROBE = "write_test"
"""A file that is there for a moment, at the start of a run."""


class Place:
    """One folder. On every kind of storage, operations raise OSError (FileNotFoundError if missing)."""

    def __init__(self, where: str | Path) -> None:
        """`where` is a path or a URL; file:// counts as a path.

        Raises: CheckpointError when the protocol's package is not installed.
        """
        text = str(where)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        self.local: Path | None = None if "://" in text else Path(text)
        self.url = text.rstrip("/") if self.local is None else str(self.local)
        """May hold a password, which its text leaves out."""

    def __str__(self) -> str:
        return without_secrets(self.url)

    def __truediv__(self, name: str) -> Place:
        return Place(self.local / name if self.local is not None else f"{self.url}/{name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Place:
        """The folder that holds this one."""
        return Place(self.local.parent) if self.local is not None else Place(self.url.rsplit("/", 1)[0])

    @property
    def is_object_storage(self) -> bool:
        """Whether it is in plain object storage, where writing an object means no more than that."""
        return self.url.startswith(OBJECT_STORAGE)

    @property
    def is_link(self) -> bool:
        """Whether the folder is a symbolic link."""
        return self.local is not None and self.local.is_symlink()

    def names(self) -> list[str]:
        """Returns the names in the folder, sorted; an empty list when it does not exist."""
        if self.local is not None:
            return sorted(entry.name for entry in self.local.iterdir()) if self.local.is_dir() else []
        with self._remote() as (fs, path):
            fs.invalidate_cache()  # other ranks write here, and fsspec caches listings
            if not fs.isdir(path):
                return []
            return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False)})

    def look_again(self) -> None:
        """Makes a network file system show what other machines have written.

        NFS and the like may show a folder as it was up to a minute ago, but not after a change that this
        machine makes in it. So this makes a file and deletes it, where that is allowed.
        """
        for folder in (self.local.parent, self.local) if self.local is not None else ():
            with suppress(OSError), tempfile.NamedTemporaryFile(dir=folder, suffix=PARTIAL):
                pass  # a TemporaryFile need not have a name

    def has(self, name: str) -> bool:
        """Returns whether the folder holds a file of this name."""
        if self.local is not None:
            return (self.local / name).is_file()
        with self._remote() as (fs, path):
            fs.invalidate_cache()
            return bool(fs.isfile(f"{path}/{name}"))

    def read(self, name: str) -> bytes:
        """Returns the bytes of a small file."""
        if self.local is not None:
            return read_small(self.local / name)
        with self._remote() as (fs, path):
            return fs.cat_file(f"{path}/{name}")

    def open(self, name: str) -> Readable:
        """Opens a file for reads at an offset. Raises: CheckpointError when it cannot be read."""
        try:
            if self.local is not None:
                return LocalFile(self.local / name)
            shard = RemoteShard(f"{self.url}/{name}")
            return ReadAhead(RemoteFile(shard, stamp_of(shard)[0]))
        except DataError as error:
            why = str(error)
            if self.local is not None and isinstance(own := error.__cause__, OSError):
                why = f"{self.local / name} cannot be read: {own.strerror}"
            raise CheckpointError(f"{why}; mend that, or use another checkpoint") from error

    @contextmanager
    def create(self, name: str) -> Iterator[Any]:
        """Opens a file for writing; when the block ends, the file is in the storage."""
        if self.local is not None:
            self.local.mkdir(parents=True, exist_ok=True)
            with (self.local / name).open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            return
        with self._remote_folder() as (fs, path), fs.open(f"{path}/{name}", "wb") as file:
            yield file

    def write(self, name: str, text: str) -> None:
        """Writes a small file; on a file system, atomically."""
        data = text.encode()
        if self.local is None:
            with self._remote_folder() as (fs, path):
                fs.pipe_file(f"{path}/{name}", data)
            return
        write_whole(self.local / name, data, durable=True)

    def remove(self, name: str) -> None:
        """Deletes a file or folder in it; of a symbolic link, only the link."""
        if self.local is not None:
            own = self.local / name
            shutil.rmtree(own) if own.is_dir() and not own.is_symlink() else own.unlink()
            return
        with self._remote() as (fs, path):
            fs.rm(f"{path}/{name}", recursive=True)

    def try_writing(self) -> None:
        """Writes a small file in a storage and removes it. Raises: CheckpointError when that fails."""
        try:
            self.write(PROBE, "")
            self.remove(PROBE)
        except OSError as error:
            told = without_secrets(f"{type(error).__name__}: {error}")
            raise CheckpointError(
                f"checkpoints cannot be written to '{self}' ({told}); check "
                "checkpoint.directory and the credentials"
            ) from error

    @contextmanager
    def _remote_folder(self) -> Iterator[tuple[Any, str]]:
        """The same as `_remote`, with the folder made where a storage has folders.

        Object storage has none, and some protocols would make a bucket of a misspelt name.
        """
        with self._remote() as (fs, path):
            if not self.is_object_storage:
                fs.makedirs(path, exist_ok=True)
            yield fs, path

    @contextmanager
    def _remote(self) -> Iterator[tuple[Any, str]]:
        """Yields fsspec's file system and the path in it; turns each protocol's errors into OSError."""
        try:
            yield file_system(self.url)
        except OSError:
            raise
        except DataError as error:
            raise CheckpointError(str(error)) from error
        except Exception as error:
            raise OSError(without_secrets(f"'{self}': {type(error).__name__}: {error}")) from error
