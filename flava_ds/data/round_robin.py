"""Which source each optimizer step draws: a pure function of the step, so every rank and every resumed run agrees without a message."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np

from flava_ds.data.order import hash64
from flava_ds.errors import ConfigError

_CHUNK = 4096
"""Blocks by which the schedule is extended when a later step is asked for."""


class RoundRobin:
    """Rotates over sources in blocks of steps, in proportion to their weights.

    After any number n of blocks, source i has been drawn more than n * w_i - 1 and less than n * w_i + 1 times: draw c of a source may not
    come before block floor(c / w_i) and must not come after block ceil((c + 1) / w_i); of the draws that may come, the one most urgent
    comes first, which meets every such deadline as the weights sum to one. Equally urgent sources are ordered by a hash of the seed and the block.

    Source: Baruah et al., "Proportionate progress" (1996), on one processor; paper section 3.3 for drawing one data set per update.
    """

    def __init__(self, weights: Sequence[float], block_steps: int = 1, seed: int = 0) -> None:
        exact = [Fraction(str(float(weight))) for weight in weights]
        if not exact or any(weight < 0 for weight in exact) or sum(exact) == 0:
            raise ConfigError(f"data.sources: weights {list(weights)} must be non-negative, and one of them positive")
        if block_steps < 1:
            raise ConfigError(f"data.block_steps is {block_steps}; it must be at least 1")
        scale = lcm(*(weight.denominator for weight in exact))
        self.block_steps, self.seed = block_steps, seed
        self._shares = [int(weight * scale) for weight in exact]
        self._total = sum(self._shares)
        self._drawn = [0] * len(exact)
        self._sequence = np.zeros(0, dtype=np.int16)
        self._counts = np.zeros((0, len(exact)), dtype=np.int64)

    def source_at(self, step: int) -> int:
        """Returns the number of the source that optimizer step `step` draws."""
        block = self._block(step)
        return int(self._sequence[block])

    def draws_before(self, source: int, step: int) -> int:
        """Returns how many of the steps 0 .. step - 1 draw `source`."""
        block = self._block(step)
        inside = step % self.block_steps if self._sequence[block] == source else 0
        return int(self._counts[block, source]) * self.block_steps + inside

    def _block(self, step: int) -> int:
        """Returns the block of `step`, and extends the cached schedule to it."""
        if step < 0:
            raise IndexError(f"step {step} is negative")
        block = step // self.block_steps
        while block >= len(self._sequence):
            self._extend()
        return block

    def _extend(self) -> None:
        """Appends _CHUNK blocks; the cache at least doubles, so that reaching step n costs O(n) once."""
        first, amount = len(self._sequence), max(_CHUNK, len(self._sequence))
        noise = hash64(self.seed, np.arange(first, first + amount)[:, None], np.arange(len(self._shares))[None]).tolist()
        sequence, counts = np.empty(amount, dtype=np.int16), np.empty((amount, len(self._shares)), dtype=np.int64)
        for i in range(amount):
            counts[i] = self._drawn
            sequence[i] = self._next(first + i, noise[i])
            self._drawn[sequence[i]] += 1
        self._sequence, self._counts = np.concatenate([self._sequence, sequence]), np.concatenate([self._counts, counts])

    def _next(self, block: int, noise: list[int]) -> int:
        """Returns the released source with the nearest deadline, in exact integers."""
        total, best = self._total, None
        for source, (share, drawn) in enumerate(zip(self._shares, self._drawn, strict=True)):
            if share and drawn * total // share <= block:
                urgency = (-(-(drawn + 1) * total // share), noise[source], source)
                best = urgency if best is None or urgency < best else best
        if best is None:
            raise AssertionError("no source is released; the weights do not sum to their total")
        return best[2]
