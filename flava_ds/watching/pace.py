"""How long the rest of a run takes: steps of different sources take different times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

KEPT = 0.8
"""What a record weighs beside the next one of the same source, so that the estimate follows the machine."""


class Pace:
    """Learns the seconds of a step of each source from the times of records, which may mix sources.

    The device is not read at every step, so the time of a record is divided among its sources by their FLOPs.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._steps: defaultdict[str, float] = defaultdict(float)

    def add(self, elapsed: float, steps: Mapping[str, int], work: Mapping[str, float]) -> None:
        """Takes in one record: its seconds, and by source its steps and their FLOPs."""
        total = sum(work.values())
        for source, count in steps.items():
            share = work[source] / total if total else count / sum(steps.values())
            self._seconds[source] = KEPT * self._seconds[source] + share * elapsed
            self._steps[source] = KEPT * self._steps[source] + count

    def seconds(self, left: Mapping[str, float]) -> float:
        """Returns the time of so many steps of each source. A source not met yet has the others' mean."""
        mean = sum(self._seconds.values()) / max(1e-9, sum(self._steps.values()))
        return sum(
            count * (self._seconds[source] / self._steps[source] if self._steps[source] else mean)
            for source, count in left.items()
        )
