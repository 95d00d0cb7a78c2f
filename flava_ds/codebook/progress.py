"""Time in a codebook's training: lines at even intervals, and a limit that is kept."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_LINE_S, LINE_EVERY_S = 3.0, 10.0
"""Seconds until the first line, from which on the time left is known, and between lines."""


class Progress:
    """Tells how far a training is, by the clock. `tell` gets a line."""

    def __init__(self, tell: Callable[[str], None], batch_size: int, done: int) -> None:
        self._tell, self._batch_size, self._first = tell, batch_size, done
        self.begin = time.perf_counter()
        self._next = self.begin + FIRST_LINE_S

    def step(self, done: int, total: int, loss: Callable[[], float]) -> None:
        """Hears of a step that is done; `loss` is asked for where a line is due, as that waits for a GPU."""
        now = time.perf_counter()
        if now < self._next or done >= total:
            return
        value, now = loss(), time.perf_counter()
        self._next = now + LINE_EVERY_S
        rate = self.rate(done, now)
        self._tell(
            f"step {done}/{total}: loss {value:.4f}, {rate * self._batch_size:.0f} images/s, "
            f"{clock((total - done) / rate)} to go"
        )

    def rate(self, done: int, now: float) -> float:
        """Returns the steps per second since the beginning."""
        return max(done - self._first, 1) / max(now - self.begin, 1e-9)


class Deadline:
    """A limit of seconds, counted from `start` or else from when this is made; None never comes."""

    def __init__(self, seconds: float | None, start: float | None = None) -> None:
        self.start = time.perf_counter() if start is None else start
        self.seconds = seconds
        self.reserve = 0.0
        """Seconds that the last report and the files will take."""

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    @property
    def left(self) -> float:
        """Seconds for steps; infinite without a limit."""
        return float("inf") if self.seconds is None else self.seconds - self.reserve - self.spent


def clock(seconds: float) -> str:
    """Writes a time as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
