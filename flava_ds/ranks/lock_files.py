"""Where a lock is kept: in a file of a folder, or in an object beside a run's checkpoints.

Not all object storage can create an object only if there is none. So of two runs that begin in the same
second both may take the lock; the one whose words were replaced notices when it renews it, or before it
publishes a checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

from flava_ds.config.plain_files import loads, read_small
from flava_ds.plain_text import without_secrets
from flava_ds.storage.atomic import write_whole
from flava_ds.storage.retry import call_once, file_system

NAME = "lock.json"
TIMEOUT_S = 30.0
"""Of one request to object storage."""


class LockFile(Protocol):
    """Holds what the owner says of itself. Operations raise OSError."""

    @property
    def folder(self) -> str:
        """Returns what the lock is for, for messages."""

    def create(self, said: dict[str, Any]) -> bool:
        """Writes it unless there is one; returns whether it did."""

    def read(self) -> dict[str, Any] | None:
        """Returns what it says: {} if unreadable, when only its age can free it, None if there is none."""

    def stamp(self) -> int | None:
        """Returns when it was written or renewed, in ns, past all caches; None if there is none."""

    def now(self, own: str) -> int:
        """Returns the storage's time in ns: that of something with the name `own` written now."""

    def renew(self, said: dict[str, Any]) -> None:
        """Sets its stamp to now."""

    def replace(self, other: dict[str, Any], said: dict[str, Any], wait_s: float, stale_s: float) -> bool:
        """Replaces what a dead process says; if several try, one succeeds. Returns whether it did.

        After False it must be looked at again; that may take `wait_s`. A process that was killed while it
        replaced counts as gone after `stale_s`.
        """

    def remove(self) -> None:
        """Removes it, if it is there."""


class LocalLockFile:
    """A file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def __str__(self) -> str:
        return str(self.path)

    @property
    def folder(self) -> str:
        return str(self.path.parent)

    def create(self, said: dict[str, Any]) -> bool:
        return _create(self.path, said)

    def read(self) -> dict[str, Any] | None:
        try:
            said = loads(read_small(self.path))
            return said if isinstance(said, dict) else {}
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}

    def stamp(self) -> int | None:
        return _stamp(self.path)

    def now(self, own: str) -> int:
        path = self.path.with_name(f"{NAME}.{own}")
        path.write_text("", encoding="utf-8")
        try:
            return path.stat().st_mtime_ns
        finally:
            path.unlink()

    def renew(self, said: dict[str, Any]) -> None:
        os.utime(self.path)

    def replace(self, other: dict[str, Any], said: dict[str, Any], wait_s: float, stale_s: float) -> bool:
        turn = self.path.with_name(f"{NAME}.turn")
        if not _create(turn, said):
            stamp = _stamp(turn)
            if stamp is not None and self.now(said["id"]) - stamp > stale_s * 1e9:
                turn.unlink(missing_ok=True)  # its owner was killed while it held the turn
            time.sleep(wait_s)
            return False
        try:
            if self.read() != other:
                return False
            write_whole(self.path, json.dumps(said))
            return True
        finally:
            turn.unlink(missing_ok=True)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class ObjectLockFile:
    """An object."""

    def __init__(self, folder: str) -> None:
        self._folder, self._url = folder, f"{folder}/{NAME}"

    def __str__(self) -> str:
        return without_secrets(self._url)

    @property
    def folder(self) -> str:
        return without_secrets(self._folder)

    def create(self, said: dict[str, Any]) -> bool:
        if self.read() is not None:
            return False
        self.renew(said)
        return self._is(said)

    def read(self) -> dict[str, Any] | None:
        try:
            said = loads(_ask(self._url, "cat_file"))
            return said if isinstance(said, dict) else {}
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def stamp(self) -> int | None:
        try:
            return _modified(self._url)
        except FileNotFoundError:
            return None

    def now(self, own: str) -> int:
        url = f"{self._url}.{own}"
        _ask(url, "pipe_file", b"")
        try:
            return _modified(url)
        finally:
            _ask(url, "rm_file")

    def renew(self, said: dict[str, Any]) -> None:
        _ask(self._url, "pipe_file", json.dumps(said).encode())

    def replace(self, other: dict[str, Any], said: dict[str, Any], wait_s: float, stale_s: float) -> bool:
        if self.read() != other:
            return False
        self.renew(said)
        return self._is(said)

    def remove(self) -> None:
        _ask(self._url, "rm_file")

    def _is(self, said: dict[str, Any]) -> bool:
        """Tells whether it still says this."""
        return (self.read() or {}).get("id") == said["id"]


def _ask(url: str, method: str, *arguments: Any) -> Any:
    """Returns the result of fsspec's method, past its cache; turns each protocol's errors into OSError."""
    try:
        file_system(url)[0].invalidate_cache()
        return call_once(url, method, TIMEOUT_S, *arguments)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"'{without_secrets(url)}': {type(error).__name__}: {error}") from error


def _modified(url: str) -> int:
    """Returns an object's modification time in ns."""
    return int(_ask(url, "modified").timestamp() * 1e9)


def _create(path: Path, said: dict[str, Any]) -> bool:
    """Creates a file unless it exists. Removes it on a full disk: an empty lock would block the folder."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(json.dumps(said))
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _stamp(path: Path) -> int | None:
    """Returns a file's modification time in ns, bypassing network file system caches; None if gone."""
    try:
        # O_NONBLOCK: do not wait on a FIFO in its place
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
