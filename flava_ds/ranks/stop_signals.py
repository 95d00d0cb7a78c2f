"""Signals that ask a run to write a checkpoint and end, and how a command has ended."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is for Slurm's --signal=USR1, sent before a time limit."""
OWN_ERROR = re.compile(r"(?:\S+: )?(error: .*)")
"""A line that tells an error of ours; pdsh puts the host before it."""
MOST_LETTERS = 300
"""Of what is told of a command's output."""
REPEATED_SIGNAL_S = 3.0
"""Repeats within this many seconds belong to the same request."""


def is_stop(status: int) -> bool:
    """Returns whether an exit status says that one of STOP_SIGNALS has ended a command."""
    return status - 128 in STOP_SIGNALS


def signal_of(status: int) -> signal.Signals | None:
    """Returns the signal that has ended a command, by its exit status: 128 + signal, or 256 - signal of
    DeepSpeed's launcher when it has ended a rank. 255 is ssh's own.
    """
    number = 256 - status if 192 < status < 255 else status - 128
    return signal.Signals(number) if number in [*signal.Signals] else None


def output_lines(output: Path, start: int = 0) -> list[str]:
    """Returns the lines of a command's output from byte `start` on but empty ones; none without a file."""
    if not output.is_file():
        return []
    with output.open("rb") as file:
        file.seek(start)
        text = file.read().decode("utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def own_error(output: Path, start: int = 0) -> str:
    """Returns the last error of ours in a command's output, on whichever host; empty without one."""
    found = [told for line in output_lines(output, start) if (told := OWN_ERROR.match(line))]
    return found[-1][1][:MOST_LETTERS] if found else ""


def last_words(output: Path, start: int = 0) -> str:
    """Returns what a command's output says about why it failed: our last error, or else what a shell could
    not start, or else the last exception, or else the last line; empty without any.
    """
    lines = output_lines(output, start)
    shells = [line for line in lines if "bash: line " in line]
    raised = [line for line in lines if "Error: " in line]
    return own_error(output, start) or (shells or raised or lines or [""])[-1][:MOST_LETTERS]


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Lets the first of STOP_SIGNALS end the block as Ctrl-C does: what runs inside is stopped and waited
    for, and says how to go on.

    Raises: SystemExit with 128 + signal then, which ends the command without a further word.
    """
    asked: list[int] = []

    def note(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(number, before[number])
        raise KeyboardInterrupt

    before: dict[int, Any] = {
        number: signal.getsignal(number) for number in STOP_SIGNALS if number != signal.SIGINT
    }
    for number in before:
        signal.signal(number, note)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(128 + (asked or [signal.SIGINT])[0]) from None
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


_listening: list[StopRequest] = []
"""The requests that currently listen for stop signals."""


def is_stopping() -> bool:
    """Returns whether this process has been asked to stop; asking again would cut its checkpoint short."""
    return any(request.asked is not None for request in _listening)


class StopRequest:
    """`asked` is the number of the signal that this process has received, or None."""

    def __init__(self) -> None:
        self.asked: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turns the first of STOP_SIGNALS into a request that all ranks agree on; a later one acts as usual.

        Repeats within REPEATED_SIGNAL_S count as the same request: on Ctrl-C, a launcher forwards the signal
        that the terminal has already sent to all processes.
        """
        asked_at = 0.0

        def note(number: int, _: Any) -> None:
            nonlocal asked_at
            if self.asked is None:
                self.asked, asked_at = number, time.monotonic()
                with suppress(OSError):  # the terminal may be gone
                    os.write(2, b"\nstopping after this step, with a checkpoint; once more to stop at once\n")
            elif time.monotonic() - asked_at > REPEATED_SIGNAL_S:
                signal.signal(number, handlers[number])
                signal.raise_signal(number)

        handlers: dict[int, Any] = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number in handlers:
            signal.signal(number, note)
        _listening.append(self)
        try:
            yield
        finally:
            _listening.remove(self)
            for number, previous in handlers.items():
                signal.signal(number, previous)
