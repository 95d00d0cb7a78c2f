"""Which source each optimizer step draws: a pure function of the step, so every rank and every resumed run agrees without a message."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np

from flava_ds.config import DataConfig
from flava_ds.data.order import hash64
from flava_ds.errors import ConfigError

KINDS = ("pair", "image", "text")
"""The order of data.kind_weights."""
_CHUNK = 1024
"""Blocks whose schedule is computed at once."""
_CHUNKS_KEPT = 4


class RoundRobin:
    """Rotates over sources in proportion to weights, which may change at given steps; each stage of equal weights is a Rotation of its own.

    So the draws of every source stay within one block of their target from the start of a stage to any step inside it.
    """

    def __init__(self, stages: Sequence[tuple[int, Sequence[Fraction]]], block_steps: int = 1, seed: int = 0) -> None:
        """`stages` are (first step, one weight per source), by ascending step, which block_steps divides; the first begins at step 0."""
        self.block_steps = block_steps
        self._firsts = [step // block_steps for step, _ in stages]
        self._rotations = [Rotation(weights, seed, first) for first, (_, weights) in zip(self._firsts, stages, strict=True)]
        self._drawn = [[0] * len(stages[0][1])]
        for rotation, first, following in zip(self._rotations, self._firsts, self._firsts[1:], strict=False):
            self._drawn.append([n + rotation.drawn_before(source, following - first) for source, n in enumerate(self._drawn[-1])])

    def source_at(self, step: int) -> int:
        """Returns the number of the source that optimizer step `step` draws."""
        stage, block = self._place(step)
        return self._rotations[stage].source_at(block)

    def draws_before(self, source: int, step: int) -> int:
        """Returns how many of the steps 0 .. step - 1 draw `source`."""
        stage, block = self._place(step)
        inside = step % self.block_steps if self._rotations[stage].source_at(block) == source else 0
        return (self._drawn[stage][source] + self._rotations[stage].drawn_before(source, block)) * self.block_steps + inside

    def _place(self, step: int) -> tuple[int, int]:
        """Returns the stage of a step and its block within the stage."""
        if step < 0:
            raise IndexError(f"step {step} is negative")
        block = step // self.block_steps
        stage = bisect_right(self._firsts, block) - 1
        return stage, block - self._firsts[stage]


class Rotation:
    """Rotates over sources, one a block, in proportion to weights.

    After any number n of blocks, source i has been drawn more than n * w_i - 1 and less than n * w_i + 1 times: draw c of a source may not
    come before block floor(c / w_i) and must not come after block ceil((c + 1) / w_i); of the draws that may come, the one most urgent
    comes first, which meets every such deadline as the weights sum to one. Equally urgent sources are ordered by a hash of the seed and the block.

    The last chunks of the schedule are kept, and for every chunk the draws before it: reaching block n costs O(n) once, and no memory to speak of.

    Source: Baruah et al., "Proportionate progress" (1996), on one processor; paper section 3.3 for drawing one data set per update.
    """

    def __init__(self, weights: Sequence[Fraction], seed: int, first_block: int) -> None:
        """`first_block` is the block of the run at which this rotation begins."""
        scale = lcm(*(weight.denominator for weight in weights))
        self._shares = [int(weight * scale) for weight in weights]
        self._total = sum(self._shares)
        self._seed, self._first_block = seed, first_block
        self._starts = [[0] * len(weights)]
        self._chunks: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def source_at(self, block: int) -> int:
        """Returns the source that is drawn in a block."""
        return int(self._chunk(block // _CHUNK)[0][block % _CHUNK])

    def drawn_before(self, source: int, block: int) -> int:
        """Returns how many of the blocks 0 .. block - 1 draw `source`."""
        return int(self._chunk(block // _CHUNK)[1][block % _CHUNK, source])

    def _chunk(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns a chunk's sources [_CHUNK] int16 and the draws before each of its blocks [_CHUNK, sources] int64."""
        if number not in self._chunks:
            for missing in range(min(number, len(self._starts) - 1), number + 1):
                self._chunks[missing] = self._compute(missing)
                if len(self._chunks) > _CHUNKS_KEPT:
                    self._chunks.popitem(last=False)
        self._chunks.move_to_end(number)
        return self._chunks[number]

    def _compute(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Computes a chunk, whose predecessors have been computed, and notes where the next one starts."""
        first, drawn = number * _CHUNK, list(self._starts[number])
        blocks = self._first_block + np.arange(first, first + _CHUNK)
        noise = hash64(self._seed, blocks[:, None], np.arange(len(self._shares))[None]).tolist()
        sequence, counts = np.empty(_CHUNK, dtype=np.int16), np.empty((_CHUNK, len(self._shares)), dtype=np.int64)
        for i in range(_CHUNK):
            counts[i] = drawn
            sequence[i] = self._next(drawn, first + i, noise[i])
            drawn[sequence[i]] += 1
        if number + 1 == len(self._starts):
            self._starts.append(drawn)
        return sequence, counts

    def _next(self, drawn: list[int], block: int, noise: list[int]) -> int:
        """Returns the released source with the nearest deadline, in exact integers."""
        total, best = self._total, None
        for source, (share, draws) in enumerate(zip(self._shares, drawn, strict=True)):
            if share and draws * total // share <= block:
                urgency = (-(-(draws + 1) * total // share), noise[source], source)
                best = urgency if best is None or urgency < best else best
        if best is None:
            raise AssertionError("no source is released; the weights do not sum to their total")
        return best[2]


def weight_stages(data: DataConfig, sizes: Sequence[int]) -> list[tuple[int, list[Fraction]]]:
    """Returns (first step, share of each source) of every stage of equal weights; the shares sum to 1. `sizes` are the sources' samples.

    A source's share is its weight, times its size where data.weigh_by_size is set, over the sum of these; where data.kind_weights is set,
    over the sum in its kind, times its kind's share.

    Raises: ConfigError when no step could draw anything, or a kind with a weight has no source with one.
    """
    weights, kind_weights = [source.weight for source in data.sources], data.kind_weights
    stages = [(0, _shares(data, weights, kind_weights, sizes, "data.sources"))]
    for number, change in enumerate(data.weight_changes):
        weights = weights if change.weights is None else change.weights
        kind_weights = kind_weights if change.kind_weights is None else change.kind_weights
        stages.append((change.step, _shares(data, weights, kind_weights, sizes, f"data.weight_changes[{number}]")))
    return stages


def _shares(data: DataConfig, weights: Sequence[float], kind_weights: Sequence[float] | None, sizes: Sequence[int], where: str) -> list[Fraction]:
    """Returns each source's exact share of the steps."""
    masses = [_exact(weight) * (size if data.weigh_by_size else 1) for weight, size in zip(weights, sizes, strict=True)]
    if not any(masses) or min(masses) < 0:
        raise ConfigError(f"{where}: weights {list(weights)} must be non-negative, and one of them positive")
    if kind_weights is None:
        return [mass / sum(masses) for mass in masses]
    kinds = [source.kind for source in data.sources]
    sums = {kind: sum(mass for mass, of in zip(masses, kinds, strict=True) if of == kind) for kind in KINDS}
    shares = dict(zip(KINDS, map(_exact, kind_weights), strict=True))
    for kind in KINDS:
        if shares[kind] and not sums[kind]:
            raise ConfigError(f"{where}: kind_weights give {kind} steps {float(shares[kind]):g}, but no source of that kind has a weight")
    return [shares[kind] / sum(shares.values()) * mass / sums[kind] if mass else Fraction(0) for mass, kind in zip(masses, kinds, strict=True)]


def _exact(weight: float) -> Fraction:
    """Reads a weight as it is written, so that 0.7, 0.15 and 0.15 sum to 1."""
    return Fraction(str(float(weight)))
