"""Processes of this machine: which are alive, and since when. Time limits for calls that may never return.
This process's standard streams, and its end.
"""

from __future__ import annotations

import io
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

Answer = TypeVar("Answer")

_listeners: list[Callable[[], None]] = []


def within(seconds: float, function: Callable[[], Answer], name: str = "call") -> Answer:
    """Calls `function` in a thread and returns its result, with a time limit.

    A blocked read cannot be interrupted, so on a timeout the thread is abandoned.

    Raises: TimeoutError when it takes longer; any error of the function.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((function(), None))
        except BaseException as error:  # passed on to the caller
            answers.put((None, error))

    threading.Thread(target=run, daemon=True, name=name).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return cast(Answer, answer)


def sign_of_life() -> None:
    """Tells whoever waits for this process that it works, although what they wait for is far."""
    for hear in _listeners:
        hear()


def listen(hear: Callable[[], None]) -> Callable[[], None]:
    """Has `hear` called at every sign of life of this process; returns what ends that."""
    _listeners.append(hear)
    return partial(_listeners.remove, hear)


def complete_streams() -> None:
    """Opens, on nothing, the standard streams that whoever started this process has closed (`>&-`): a file of
    the run would get such a stream's number, and what libraries and child processes print. What the
    locale's encoding lacks is spelled out on standard output, as Python does on standard error.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def leave(status: int) -> NoReturn:
    """Ends a rank whose process group is closed, without the interpreter's own exit: a gloo thread that wants
    the interpreter while it shuts down would sometimes abort the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def machine() -> str:
    """Identifies a pid namespace: this boot of this machine and, in a container, its own namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    names = Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()} {names.stat().st_ino}" if boot.is_file() else socket.gethostname()


def state_of(pid: Any) -> str:
    """Returns the letter of a process's state in /proc; '' if there is no such process."""
    return _stat(pid)[0]


def started(pid: Any) -> int | None:
    """Returns when a process started, in ticks since boot, to detect reused pids; None if not running."""
    state, ticks = _stat(pid)
    return None if state in ("", "Z", "X") else ticks  # a zombie is as good as gone


def _stat(pid: Any) -> tuple[str, int]:
    """Returns a process's state and start time; '' and 0 if there is none, or `pid` is not a number.

    Source: proc_pid_stat(5).
    """
    try:
        state, *numbers = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
        return state, int(numbers[18])
    except (OSError, ValueError, TypeError, IndexError):
        return "", 0
