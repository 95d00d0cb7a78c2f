"""Ends a rank whose launcher is gone: nobody would stop it, restart it or wait for it, and it would hold its
device to the end of the run.

A launcher that is killed by SIGKILL cannot tell its ranks, so they look once a second. The kernel's own
signal for that (PR_SET_PDEATHSIG) would not do: it follows the thread that started the process, and
DeepSpeed's launcher is two processes, of which the ranks' parent outlives the other. Only a parent that is
known to be a launcher counts; a shell may end before what it has started.
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
"""Variables that a launcher sets for its children; with the second one, the parent's parent may be
`deepspeed` itself.
"""


@dataclass(frozen=True)
class Launcher:
    """A process that this one needs, by its number and its start, which tell it from a later one of the same
    number.
    """

    pid: int
    began: int | None
    is_parent: bool

    def is_gone(self) -> bool:
        """Tells whether the process has ended."""
        return os.getppid() != self.pid if self.is_parent else started(self.pid) != self.began


def watch() -> None:
    """Asks this process to stop, as SIGTERM does, once a launcher that started it is gone; does nothing
    without a launcher.
    """
    launchers = launchers_of(os.environ)
    if launchers:
        threading.Thread(target=_wait, args=(launchers,), name="launcher watch", daemon=True).start()


def launchers_of(environment: Mapping[str, str]) -> list[Launcher]:
    """Returns the launcher processes above this one: its parent, and the `deepspeed` command above
    DeepSpeed's per-host launcher.
    """
    if not any(name in environment for name in (TORCHRUN, DEEPSPEED, OPEN_MPI)):
        return []
    parent = os.getppid()
    found = [Launcher(parent, started(parent), is_parent=True)]
    above = _parent_of(parent) if DEEPSPEED in environment and TORCHRUN not in environment else None
    if above is not None and b"deepspeed" in _command_of(above):
        found.append(Launcher(above, started(above), is_parent=False))
    return found


def _parent_of(pid: int) -> int | None:
    """Returns the number of a process's parent; None where that cannot be looked up."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _command_of(pid: int) -> bytes:
    """Returns a process's command line; nothing where that cannot be looked up."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _wait(launchers: list[Launcher]) -> None:
    """Waits until a launcher is gone. A rank that is stopping already is left to its checkpoint: a second
    signal would end it at once.
    """
    while not (gone := [launcher.pid for launcher in launchers if launcher.is_gone()]):
        time.sleep(POLL_S)
    if is_stopping():
        return
    with suppress(OSError):
        os.write(2, f"\nthe launcher (process {gone[0]}) is gone\n".encode())
    os.kill(os.getpid(), signal.SIGTERM)
