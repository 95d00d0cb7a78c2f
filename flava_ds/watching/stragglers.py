"""Finds slow ranks: each rank's own time in a step, the slowest rank, and a warning if it persists.

Ranks end a step together, because they wait for each other in collectives. What differs is the time until a
rank first waits: its loader, its copies, and its forward pass up to the gather of the contrastive loss.
ZeRO-3 gathers weights throughout the forward pass, so only the loader's time differs there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from flava_ds.objectives.base import PooledObjective
from flava_ds.watching.log_line import lags


class StepClock:
    """Times this rank's work in a step until it first waits for other ranks.

    Does not wait for the device: events are read once per record.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._started: Any = None

    def watch(self, module: nn.Module) -> None:
        """Stops the clock where a forward pass of `module` ends, or gathers the features of a pooled loss."""
        module.register_forward_hook(lambda *_: self.stop())
        for part in module.modules():
            if isinstance(part, PooledObjective):
                part.register_forward_pre_hook(lambda *_: self.stop())

    def start(self) -> None:
        """Starts a step."""
        self._started = self._mark()

    def stop(self) -> None:
        """Ends the rank's own part of the step; further calls before the next start do nothing."""
        if self._started is None:
            return
        if self.device.type == "cuda":
            self._events.append((self._started, self._mark()))
        else:
            self._seconds += self._mark() - self._started
        self._started = None

    def take(self) -> float:
        """Returns the seconds since the last call.

        On a GPU this waits for the last event, so call it where the device is read anyway.
        """
        seconds, events = self._seconds, self._events
        self._seconds, self._events = 0.0, []
        for begun, ended in events:
            ended.synchronize()
            seconds += begun.elapsed_time(ended) / 1e3
        return seconds

    def _mark(self) -> Any:
        """Returns the current time: an event in the device's stream, or seconds on a CPU."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class Slowest:
    """The slowest rank of a record: its seconds per step before waiting, the median rank's, and the cause."""

    rank: int
    host: str
    seconds: float
    median: float
    cause: Literal["data", "compute"]

    @property
    def lags(self) -> bool:
        """True if it slows the others down noticeably."""
        return lags(self.seconds, self.median)


def find_slowest(waited: Sequence[float], worked: Sequence[float], hosts: Sequence[str]) -> Slowest:
    """Compares ranks by seconds per step spent waiting for data and working; one entry per rank each."""
    total = [a + b for a, b in zip(waited, worked, strict=True)]
    rank = max(range(len(total)), key=total.__getitem__)
    excess = [values[rank] - statistics.median_low(values) for values in (waited, worked)]
    return Slowest(
        rank,
        hosts[rank],
        total[rank],
        statistics.median_low(total),
        "data" if excess[0] > excess[1] else "compute",
    )


class StragglerWatch:
    """Counts consecutive records with the same slow rank, and warns every `lines` of them."""

    def __init__(self, lines: int) -> None:
        self.lines = lines
        self._rank, self._count = -1, 0

    def see(self, slowest: Slowest) -> str | None:
        """Adds one record's slowest rank. Returns a warning if due."""
        same = slowest.lags and slowest.rank == self._rank
        self._rank, self._count = slowest.rank, (self._count + 1 if same else int(slowest.lags))
        if not self.lines or not self._count or self._count % self.lines:
            return None
        remedy = {
            "data": (
                f"it waits for data: look at the storage and the loader processes of {slowest.host} "
                "(data.num_workers, data.prefetch_batches)"
            ),
            "compute": (
                f"it computes slowly: look for other processes, clocks and heat on {slowest.host}, or "
                "leave the host out"
            ),
        }
        return (
            f"all ranks wait for rank {slowest.rank} on {slowest.host}: for {self._count} log lines it has "
            f"taken {slowest.seconds:.3g} s a step until it meets the others, "
            f"{slowest.seconds / slowest.median:.2g} times the median rank's {slowest.median:.3g} s; "
            f"{remedy[slowest.cause]}"
        )
