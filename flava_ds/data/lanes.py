"""Where each lane of a rank stands in a source whose order is the lanes' own: arithmetic on the step, like
everything else about the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flava_ds.data.round_robin import RoundRobin


class LanePositions:
    """Deals a rank's micro-steps to its loader processes in turn, and counts what each has given of each
    source before a step.

    Micro-step m of step s goes to lane (s * micro_steps + m) mod lanes, as torch's DataLoader hands out what
    it is asked for.
    """

    def __init__(
        self, round_robin: RoundRobin, sizes: Mapping[str, int], micro_steps: int, lanes: int
    ) -> None:
        """`sizes` are the samples of each source's micro-batch."""
        self.round_robin, self.sizes, self.micro_steps, self.lanes = round_robin, sizes, micro_steps, lanes
        self._step, self._drawn = 0, Counter()

    def place(self, source: str, step: int, micro: int) -> tuple[int, int]:
        """Returns the lane of a micro-step that draws `source`, and how many of its samples that lane has
        given before.
        """
        self._walk_to(step)
        first = step * self.micro_steps
        lane = (first + micro) % self.lanes
        before = self._drawn[source, lane] + sum(
            (first + earlier) % self.lanes == lane for earlier in range(micro)
        )
        return lane, before * self.sizes[source]

    def _walk_to(self, step: int) -> None:
        """Counts up to a step; from the beginning when it lies before the last one that was asked for."""
        if step < self._step:
            self._step, self._drawn = 0, Counter()
        for passed in range(self._step, step):
            source = self.round_robin.source_at(passed)
            for micro in range(self.micro_steps):
                self._drawn[source, (passed * self.micro_steps + micro) % self.lanes] += 1
        self._step = step
