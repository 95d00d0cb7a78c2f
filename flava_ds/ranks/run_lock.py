"""One run per folder: a lock file that names its owner, with a heartbeat for other machines.

Two runs in one folder would delete each other's checkpoints and mix their logs. A dead process holds nothing:
its own machine can look it up, other machines conclude it from a missing heartbeat. Ages are differences of
the file system's own timestamps, so the machines' clocks need not agree.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import CheckpointError
from flava_ds.processes import machine, started
from flava_ds.ranks.distributed import log
from flava_ds.storage.atomic import write_whole

NAME = "lock.json"
HEARTBEAT_S = 10.0
STALE_S = 60.0
"""A lock of another machine without a heartbeat for this long is taken over."""
POLL_S = 1.0


_HELD: dict[Path, RunLock] = {}
"""The locks that this process holds."""


def hold(run_path: Path, patience_s: float = math.inf) -> None:
    """Locks a run's folder for this process, unless it has it already.

    `patience_s` is how long other ranks wait for this one.

    Raises: CheckpointError when another live run holds it, or one of another machine, of which nothing is
    heard, does not count as gone within half of `patience_s`.
    """
    if run_path not in _HELD:
        lock = RunLock(run_path, patience_s)
        lock.acquire()
        _HELD[run_path] = lock


def lost(run_path: Path) -> bool:
    """Returns whether another run has taken over a folder that this process held."""
    return run_path in _HELD and not _HELD[run_path].held()


def release_all() -> None:
    """Releases all locks of this process."""
    while _HELD:
        _HELD.popitem()[1].release()


class RunLock:
    """The right to train in a run's folder, held until `release` or the end of this process."""

    def __init__(self, run_path: Path, patience_s: float = math.inf) -> None:
        self.path, self.patience_s = run_path / NAME, patience_s
        self._said = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        }
        self._said |= {"machine": machine(), "process": started(os.getpid()), "id": uuid.uuid4().hex}
        self._own = self.path.with_name(f"{NAME}.{self._said['id']}")
        self._released = threading.Event()

    def acquire(self) -> None:
        """Takes the lock, if need be from a dead process.

        Raises: CheckpointError when another live run holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not _create(self.path, self._said):
            other = _read(self.path)
            if other is None:
                continue  # released in between
            if self._is_alive(other):
                other = _read(self.path) or other
                raise CheckpointError(
                    f"{self.path.parent} is in use: process {other.get('pid')} on {other.get('host')} has "
                    f"trained there since {other.get('since')}; "
                    "stop that run, or give this one another --name"
                )
            if self._take_over(other):
                log.info(
                    "took over %s from process %s on %s, which is gone",
                    self.path,
                    other.get("pid"),
                    other.get("host"),
                )
                break
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def held(self) -> bool:
        """Returns whether the lock is still this one; another run takes it over if this one seems dead."""
        return (_read(self.path) or {}).get("id") == self._said["id"]

    def release(self) -> None:
        """Releases the lock."""
        self._released.set()
        if self.held():
            self.path.unlink(missing_ok=True)

    def _is_alive(self, other: dict[str, Any]) -> bool:
        """Returns whether the owner is alive, watching another machine's lock until it beats or is stale."""
        if other.get("machine") == self._said["machine"]:
            began = started(other.get("pid"))
            return began is not None and began == other.get("process")
        first, begun = None, time.monotonic()
        while (beat := _stamp(self.path)) is not None:
            age_s = (self._now() - beat) / 1e9
            if first is not None and beat != first:
                return True
            if age_s > STALE_S:
                return False
            if first is None:
                place = f"process {other.get('pid')} on {other.get('host')}"
                log.info(
                    "%s is held by %s; waiting up to %.0f s for a sign of life",
                    self.path,
                    place,
                    min(STALE_S - age_s, self.patience_s / 2),
                )
            if time.monotonic() - begun > self.patience_s / 2:
                raise CheckpointError(
                    f"{self.path.parent} is held by process {other.get('pid')} on {other.get('host')}, which "
                    f"has given no sign of life for {age_s:.0f} s and counts as gone after {STALE_S:.0f} s; "
                    f"start again in {max(1, STALE_S - age_s):.0f} s: the other ranks wait no more than "
                    f"{self.patience_s:.0f} s (engine.communication_timeout_s)"
                )
            first = beat
            time.sleep(POLL_S)
        return False

    def _take_over(self, other: dict[str, Any]) -> bool:
        """Replaces the lock of a dead process; if several runs try, only one succeeds.

        Returns False if the lock must be checked again.
        """
        turn = self.path.with_name(f"{NAME}.turn")
        if not _create(turn, self._said):
            stamp = _stamp(turn)
            if stamp is not None and self._now() - stamp > STALE_S * 1e9:
                turn.unlink(missing_ok=True)  # its owner was killed while it held the turn
            time.sleep(POLL_S)
            return False
        try:
            if _read(self.path) != other:
                return False
            write_whole(self.path, json.dumps(self._said))
            return True
        finally:
            turn.unlink(missing_ok=True)

    def _now(self) -> int:
        """Returns the file system's time in ns: the timestamp of a file written now."""
        self._own.write_text("", encoding="utf-8")
        try:
            return self._own.stat().st_mtime_ns
        finally:
            self._own.unlink()

    def _beat(self) -> None:
        """Renews the lock until it is released or lost."""
        while not self._released.wait(HEARTBEAT_S):
            try:
                if not self.held():
                    log.error("%s was taken over by another run; this one saves no more", self.path)
                    return
                os.utime(self.path)
            except OSError as error:
                log.warning("%s cannot be renewed (%s)", self.path, error)


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


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the contents of a lock, None if there is none.

    Returns {} for an unreadable one, which only its age can free.
    """
    try:
        said = loads(read_small(path))
        return said if isinstance(said, dict) else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


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
