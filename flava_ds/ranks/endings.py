"""How a command that trains has ended: its exit status, and what its output says of the reason."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from flava_ds.ranks.stop_signals import STOP_SIGNALS

OWN_ERROR = re.compile(r"(?:\S+: )?error: (.*)")
"""A line that tells an error of ours; pdsh puts the host before it."""
MOST_LETTERS = 300
"""Of what is told of an output."""


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


def own_error(lines: Sequence[str]) -> str:
    """Returns the last error that we have told in lines of an output, on whichever host; "" without one."""
    found = [told[1] for line in lines if (told := OWN_ERROR.match(line))]
    return found[-1][:MOST_LETTERS] if found else ""


def last_words(lines: Sequence[str]) -> str:
    """Returns what lines of an output say about why the command failed: our last error, or else what a shell
    could not start, or else the last exception, or else the last line; "" without any.
    """
    shells = [line for line in lines if "bash: line " in line]
    raised = [line for line in lines if "Error: " in line]
    return own_error(lines) or (shells or raised or lines or [""])[-1][:MOST_LETTERS]
