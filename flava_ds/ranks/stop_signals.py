"""Signals that ask a run to write a checkpoint and end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is for Slurm's --signal=USR1, sent before a time limit."""
REPEATED_SIGNAL_S = 3.0
"""Repeats within this many seconds belong to the same request."""


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

    def __init__(self, tell_end: Callable[[int], object] = lambda status: None) -> None:
        """`tell_end` is called with the exit status before a further signal ends this process at once."""
        self.asked: int | None = None
        self._tell_end = tell_end

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
                if handlers[number] is signal.SIG_DFL:  # KeyboardInterrupt is told by whoever catches it
                    with suppress(OSError):
                        os.write(2, b"\nstopped at once, without a checkpoint of this step\n")
                    self._tell_end(128 + number)
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
