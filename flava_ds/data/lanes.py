"""Positions of a rank's lanes in sources without elastic order, computed from the step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flava_ds.data.round_robin import RoundRobin


class LanePositions:
    """Assigns a rank's micro-steps to its dataloader workers and counts the samples each has delivered.

    Micro-step m of step s goes to lane (s * micro_steps + m) mod lanes, the round-robin order in which
    torch's DataLoader hands out requests.
    """

    def __init__(
        self, round_robin: RoundRobin, sizes: Mapping[str, int], micro_steps: int, lanes: int
    ) -> None:
        """`sizes` are the micro-batch sizes of the sources, in samples."""
        self.round_robin, self.sizes, self.micro_steps, self.lanes = round_robin, sizes, micro_steps, lanes
        self._step = 0
        # micro-steps by source and lane, beyond those that every lane has of each step
        self._more: Counter[tuple[str, int]] = Counter()

    def place(self, source: str, step: int, micro: int) -> tuple[int, int]:
        """Returns the lane of a micro-step that draws `source`, and its samples from that lane before it."""
        self._walk_to(step)
        first = step * self.micro_steps
        lane = (first + micro) % self.lanes
        before = self.round_robin.draws_before(source, step) * (self.micro_steps // self.lanes)
        # of this step's micro-steps, those of the same lane are `lanes` apart
        before += self._more[source, lane] + micro // self.lanes
        return lane, before * self.sizes[source]

    def _walk_to(self, step: int) -> None:
        """Counts up to a step; starts over when the step lies before the last one.

        Of a step's micro-steps, each lane has micro_steps // lanes, and the lanes that come first in it have
        one more. Only those are counted: where the lanes divide the micro-steps, there are none.
        """
        rest = self.micro_steps % self.lanes
        if step < self._step:
            self._step, self._more = 0, Counter()
        for passed in range(self._step, step) if rest else ():
            source = self.round_robin.source_at(passed)
            for micro in range(rest):
                self._more[source, (passed * self.micro_steps + micro) % self.lanes] += 1
        self._step = step
