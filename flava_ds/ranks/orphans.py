"""Stops a rank whose launcher is gone: it would hold its device to the end of the run, out of control.

A launcher killed by SIGKILL cannot tell its ranks, so they check once a second. The kernel's signal for this
(PR_SET_PDEATHSIG) does not work here: it follows the thread that started the process, and DeepSpeed's
launcher consists of two processes, of which the ranks' parent outlives the other. Only a parent known to be a
launcher counts, because a shell may end before what it has started.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flava_ds.processes import started
from flava_ds.ranks.stop_signals import is_stopping

POLL_S = 1.0
TORCHRUN, DEEPSPEED, OPEN_MPI = "TORCHELASTIC_RUN_ID", "CROSS_RANK", "OMPI_COMM_WORLD_RANK"
"""Variables that launchers set for their children. With the second, the grandparent may be `deepspeed`."""


@dataclass(frozen=True)
class Launcher:
    """A process that this one depends on. Its start time tells it from a later process with the same pid."""

    pid: int
    began: int | None
    is_parent: bool

    def is_gone(self) -> bool:
        """Returns whether the process has ended."""
        return os.getppid() != self.pid if self.is_parent else started(self.pid) != self.began


def watch() -> None:
    """Asks this process to stop, as SIGTERM does, once its launcher is gone; without one, does nothing."""
    launchers = launchers_of(os.environ)
    if launchers:
        threading.Thread(target=_wait, args=(launchers,), name="launcher watch", daemon=True).start()


def launchers_of(environment: Mapping[str, str]) -> list[Launcher]:
    """Returns this process's launchers: its parent, and the `deepspeed` command that started the parent."""
    if not any(name in environment for name in (TORCHRUN, DEEPSPEED, OPEN_MPI)):
        return []
    parent = os.getppid()
    found = [Launcher(parent, started(parent), is_parent=True)]
    above = _parent_of(parent) if DEEPSPEED in environment and TORCHRUN not in environment else None
    if above is not None and b"deepspeed" in _command_of(above):
        found.append(Launcher(above, started(above), is_parent=False))
    return found


def _parent_of(pid: int) -> int | None:
    """Returns the pid of a process's parent; None if unknown."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _command_of(pid: int) -> bytes:
    """Returns a process's command line; empty if unknown."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _wait(launchers: list[Launcher]) -> None:
    """Waits until a launcher is gone, then sends SIGTERM to this process.

    A rank that is stopping already may finish its checkpoint: a second signal would end it at once.
    """
    while not (gone := [launcher.pid for launcher in launchers if launcher.is_gone()]):
        time.sleep(POLL_S)
    if is_stopping():
        return
    with suppress(OSError):
        os.write(2, f"\nthe launcher (process {gone[0]}) is gone\n".encode())
    os.kill(os.getpid(), signal.SIGTERM)
