"""One run per folder: a lock that names its owner, with a heartbeat for other machines.

Two runs in one folder would delete each other's checkpoints and mix their logs. A dead process holds nothing:
its own machine can look it up, other machines conclude it from a missing heartbeat. Ages are differences of
the file system's own timestamps, so the machines' clocks need not agree.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from flava_ds.errors import CheckpointError
from flava_ds.processes import machine, started
from flava_ds.ranks.distributed import log
from flava_ds.ranks.lock_files import LocalLockFile, LockFile, ObjectLockFile

HEARTBEAT_S = 10.0
STALE_S = 60.0
"""A lock of another machine without a heartbeat for this long is taken over."""
POLL_S = 1.0


_HELD: dict[Path | str, RunLock] = {}
"""The locks that this process holds."""


def hold(folder: Path | str, patience_s: float = math.inf) -> None:
    """Locks a folder, or a URL of object storage, for this process, unless it has it already.

    `patience_s` is how long other ranks wait for this one.

    Raises: CheckpointError when another live run holds it, or one of another machine, of which nothing is
    heard, does not count as gone within half of `patience_s`; OSError when it cannot be written.
    """
    if folder not in _HELD:
        lock = RunLock(folder, patience_s)
        lock.acquire()
        _HELD[folder] = lock


def lost() -> str | None:
    """Returns a folder that this process held and another run has taken over, None if there is none."""
    for lock in _HELD.values():
        try:
            if (held := lock.held()) is False:
                return lock.file.folder
            if held is None:
                log.warning("%s cannot be read", lock.file)
        except OSError as error:  # a storage that does not answer has not taken anything
            log.warning("%s cannot be read (%s)", lock.file, error)
    return None


def release_all() -> None:
    """Releases all locks of this process."""
    while _HELD:
        _HELD.popitem()[1].release()


class RunLock:
    """The right to train in a run's folder, held until `release` or the end of this process."""

    def __init__(
        self,
        folder: Path | str,
        patience_s: float = math.inf,
        otherwise: str = "give this one another --name",
    ) -> None:
        """`otherwise` is what a user may do who does not want to stop the one that holds the folder."""
        self.file: LockFile = LocalLockFile(folder) if isinstance(folder, Path) else ObjectLockFile(folder)
        self.patience_s, self.otherwise = patience_s, otherwise
        self._said: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        }
        self._said |= {"machine": machine(), "process": started(os.getpid()), "id": uuid.uuid4().hex}
        self._released = threading.Event()

    def acquire(self) -> None:
        """Takes the lock, if need be from a dead process.

        Raises: CheckpointError when another live run holds it.
        """
        if isinstance(self.file, LocalLockFile):
            self.file.path.parent.mkdir(parents=True, exist_ok=True)
        while not self.file.create(self._said):
            other = self.file.read()
            if other is None:
                continue  # released in between
            if self._is_alive(other):
                other = self.file.read() or other
                raise CheckpointError(
                    f"{self.file.folder} is in use: process {other.get('pid')} on {other.get('host')} has "
                    f"trained there since {other.get('since')}; "
                    f"stop that run, or {self.otherwise}"
                )
            if self.file.replace(other, self._said, POLL_S, STALE_S):
                log.info(
                    "took over %s from process %s on %s, which is gone",
                    self.file,
                    other.get("pid"),
                    other.get("host"),
                )
                break
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def held(self) -> bool | None:
        """Returns whether the lock is still this one; another run takes it over if this one seems dead.

        None if it cannot be read, which says nothing of another run: NFS has such moments.
        """
        said = self.file.read()
        return None if said == {} else said is not None and said.get("id") == self._said["id"]

    def release(self) -> None:
        """Releases the lock."""
        self._released.set()
        try:
            if self.held():
                self.file.remove()
        except OSError as error:
            log.warning("%s cannot be removed (%s)", self.file, error)

    def _is_alive(self, other: dict[str, Any]) -> bool:
        """Returns whether the owner is alive, watching another machine's lock until it beats or is stale."""
        if other.get("machine") == self._said["machine"]:
            began = started(other.get("pid"))
            return began is not None and began == other.get("process")
        first, begun = None, time.monotonic()
        while (beat := self.file.stamp()) is not None:
            age_s = (self.file.now(self._said["id"]) - beat) / 1e9
            if first is not None and beat != first:
                return True
            if age_s > STALE_S:
                return False
            if first is None:
                place = f"process {other.get('pid')} on {other.get('host')}"
                log.info(
                    "%s is held by %s; waiting up to %.0f s for a sign of life",
                    self.file,
                    place,
                    min(STALE_S - age_s, self.patience_s / 2),
                )
            if time.monotonic() - begun > self.patience_s / 2:
                raise CheckpointError(
                    f"{self.file.folder} is held by process {other.get('pid')} on {other.get('host')}, which "
                    f"has given no sign of life for {age_s:.0f} s and counts as gone after {STALE_S:.0f} s; "
                    f"start again in {max(1, STALE_S - age_s):.0f} s: the other ranks wait no more than "
                    f"{self.patience_s:.0f} s (engine.communication_timeout_s)"
                )
            first = beat
            time.sleep(POLL_S)
        return False

    def _beat(self) -> None:
        """Renews the lock until it is released or lost."""
        while not self._released.wait(HEARTBEAT_S):
            try:
                if (held := self.held()) is False:
                    log.error("%s was taken over by another run; this one saves no more", self.file)
                    return
                if held:
                    self.file.renew(self._said)
            except OSError as error:
                log.warning("%s cannot be renewed (%s)", self.file, error)
