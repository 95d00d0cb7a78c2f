"""Processes and threads of this machine: which are alive, since when, and calls that may never return."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

Answer = TypeVar("Answer")


def within(seconds: float, function: Callable[[], Answer], name: str = "call") -> Answer:
    """Returns what `function` does, which a thread calls: a blocked read or question cannot be ended, only no
    longer waited for.

    Raises: TimeoutError when it takes longer; its own error.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((function(), None))
        except BaseException as error:  # handed over to the caller
            answers.put((None, error))

    threading.Thread(target=run, daemon=True, name=name).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return cast(Answer, answer)


def machine() -> str:
    """Names what shares process numbers: this boot of this machine, and in a container its own name space."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    names = Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()} {names.stat().st_ino}" if boot.is_file() else socket.gethostname()


def state_of(pid: Any) -> str:
    """Returns the letter that /proc gives a process's state; '' when there is none."""
    return _stat(pid)[0]


def started(pid: Any) -> int | None:
    """Returns when a process of this machine was started, in ticks since boot, so that a number used again is
    noticed; None when there is none.
    """
    state, ticks = _stat(pid)
    return None if state in ("", "Z", "X") else ticks  # a zombie works no more


def _stat(pid: Any) -> tuple[str, int]:
    """Returns state and start of a process; '' and 0 when there is none, or `pid` is no number. Source:
    proc_pid_stat(5).
    """
    try:
        state, *numbers = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
        return state, int(numbers[18])
    except (OSError, ValueError, TypeError, IndexError):
        return "", 0
