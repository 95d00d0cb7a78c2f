"""Signals that ask a run to write a checkpoint and end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The last one is what Slurm's --signal=USR1 sends before a time limit."""
REPEATED_SIGNAL_S = 3.0
"""Seconds within which a second signal does not yet mean impatience."""


class StopRequest:
    """`asked` is the number of the signal that this process has received, or None."""

    def __init__(self) -> None:
        self.asked: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turns the first of STOP_SIGNALS into a request that all ranks agree on; a later one takes its usual course.

        Repeats within REPEATED_SIGNAL_S are the same request: on Ctrl-C a launcher forwards what the terminal has already sent.
        """
        asked_at = 0.0

        def note(number: int, _: Any) -> None:
            nonlocal asked_at
            if self.asked is None:
                self.asked, asked_at = number, time.monotonic()
                os.write(2, b"\nstopping after this step, with a checkpoint; once more to stop at once\n")
            elif time.monotonic() - asked_at > REPEATED_SIGNAL_S:
                signal.signal(number, handlers[number])
                signal.raise_signal(number)

        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number in handlers:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, previous in handlers.items():
                signal.signal(number, previous)
