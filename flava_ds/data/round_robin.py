"""The source that each optimizer step draws: a function of the step, so ranks need no communication."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm

import numpy as np

from flava_ds.config import DataConfig
from flava_ds.config.data import weights_by_stage
from flava_ds.data.order import hash64
from flava_ds.errors import ConfigError

_CHUNK = 1024
"""Blocks per chunk of the schedule."""
_CHUNKS_KEPT = 4


class RoundRobin:
    """Rotates over sources in proportion to weights, which may change at given steps.

    Each stage of constant weights is a Rotation. From the start of a stage to any step in it, the draws of
    every source stay within one block of their target. The order in which sources are listed and sources of
    weight 0 have no effect.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, Mapping[str, Fraction]]],
        seeds: Mapping[str, int],
        block_steps: int = 1,
        seed: int = 0,
    ) -> None:
        """`stages` are (first step, share by source), ascending; the first one begins at step 0.

        block_steps must divide every first step. `seeds` holds each source's source_seed.
        """
        self.block_steps = block_steps
        self._firsts = [step // block_steps for step, _ in stages]
        self._rotations = [
            Rotation(weights, seeds, seed, first)
            for first, (_, weights) in zip(self._firsts, stages, strict=True)
        ]
        self._drawn = [dict.fromkeys(stages[0][1], 0)]
        for rotation, first, following in zip(self._rotations, self._firsts, self._firsts[1:], strict=False):
            before = self._drawn[-1]
            length = following - first
            self._drawn.append({name: n + rotation.drawn_before(name, length) for name, n in before.items()})

    def source_at(self, step: int) -> str:
        """Returns the name of the source that optimizer step `step` draws."""
        stage, block = self._place(step)
        return self._rotations[stage].source_at(block)

    def draws_before(self, source: str, step: int) -> int:
        """Returns how many of the steps 0 .. step - 1 draw `source`."""
        stage, block = self._place(step)
        inside = step % self.block_steps if self._rotations[stage].source_at(block) == source else 0
        blocks = self._drawn[stage][source] + self._rotations[stage].drawn_before(source, block)
        return blocks * self.block_steps + inside

    def _place(self, step: int) -> tuple[int, int]:
        """Returns the stage of a step, and its block within the stage."""
        if step < 0:
            raise IndexError(f"step {step} is negative")
        block = step // self.block_steps
        stage = bisect_right(self._firsts, block) - 1
        return stage, block - self._firsts[stage]


class Rotation:
    """Rotates over sources, one per block, in proportion to weights.

    After any number n of blocks, source i has been drawn more than n * w_i - 1 and less than n * w_i + 1
    times. Draw c of a source is released at block floor(c / w_i) and due by block ceil((c + 1) / w_i). Each
    block takes the released draw with the earliest deadline, which meets every deadline because the weights
    sum to one. A hash of the run's seed, the block and the source's seed breaks ties.

    The schedule is computed in chunks. Only the latest are kept, along with the draws before every chunk, so
    reaching block n costs O(n) once and little memory.

    Source: Baruah et al., "Proportionate progress" (1996), on one processor; FLAVA section 3.3 for drawing
    one data set per update.
    """

    def __init__(
        self, weights: Mapping[str, Fraction], seeds: Mapping[str, int], seed: int, first_block: int
    ) -> None:
        """`first_block` is the run's block at which this rotation begins."""
        self._names = sorted(name for name, weight in weights.items() if weight)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        scale = lcm(*(weights[name].denominator for name in self._names))
        self._shares = [int(weights[name] * scale) for name in self._names]
        self._total = sum(self._shares)
        self._seeds = np.array([seeds[name] for name in self._names], dtype=np.uint64)
        self._seed, self._first_block = seed, first_block
        self._starts = [[0] * len(self._names)]
        self._chunks: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def source_at(self, block: int) -> str:
        """Returns the source that a block draws."""
        return self._names[int(self._chunk(block // _CHUNK)[0][block % _CHUNK])]

    def drawn_before(self, source: str, block: int) -> int:
        """Returns how many of the blocks 0 .. block - 1 draw `source`."""
        if source not in self._numbers:
            return 0
        return int(self._chunk(block // _CHUNK)[1][block % _CHUNK, self._numbers[source]])

    def _chunk(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns a chunk's sources [_CHUNK] int16 and the draws before its blocks [_CHUNK sources] int64."""
        if number not in self._chunks:
            for missing in range(min(number, len(self._starts) - 1), number + 1):
                self._chunks[missing] = self._compute(missing)
                if len(self._chunks) > _CHUNKS_KEPT:
                    self._chunks.popitem(last=False)
        self._chunks.move_to_end(number)
        return self._chunks[number]

    def _compute(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Computes a chunk, after all chunks before it, and records where the next one starts."""
        first, drawn = number * _CHUNK, list(self._starts[number])
        blocks = self._first_block + np.arange(first, first + _CHUNK)
        noise = hash64(self._seed, blocks[:, None], self._seeds[None]).tolist()
        sequence = np.empty(_CHUNK, dtype=np.int16)
        counts = np.empty((_CHUNK, len(self._shares)), dtype=np.int64)
        for i in range(_CHUNK):
            counts[i] = drawn
            sequence[i] = self._next(drawn, first + i, noise[i])
            drawn[sequence[i]] += 1
        if number + 1 == len(self._starts):
            self._starts.append(drawn)
        return sequence, counts

    def _next(self, drawn: list[int], block: int, noise: list[int]) -> int:
        """Returns the released source with the earliest deadline, in exact integers."""
        total, best = self._total, None
        for source, (share, draws) in enumerate(zip(self._shares, drawn, strict=True)):
            if share and draws * total // share <= block:
                urgency = (-(-(draws + 1) * total // share), noise[source], source)
                best = urgency if best is None or urgency < best else best
        if best is None:
            raise AssertionError("no source is released; the weights do not sum to their total")
        return best[2]


def weight_stages(data: DataConfig, sizes: Mapping[str, int | None]) -> list[tuple[int, dict[str, Fraction]]]:
    """Returns (first step, share of each source) of every stage of constant weights; the shares sum to 1.

    `sizes` are the numbers of samples. A source's share is its weight (times its size with
    data.weigh_by_size) over the sum of all; with data.kind_weights, over the sum of its kind, times its
    kind's share.

    Raises: ConfigError when a size is needed but unknown, no step could draw anything, or a kind with a
    weight has no source with one.
    """
    known = {name: size for name, size in sizes.items() if size is not None}
    unknown = [name for name in sizes if name not in known]
    if data.weigh_by_size and unknown:
        raise ConfigError(
            f"data.weigh_by_size needs the number of samples, which is unknown for source '{unknown[0]}'; "
            "set weights"
        )
    stages = []
    for number, (first, weights, kind_weights) in enumerate(weights_by_stage(data)):
        where = f"data.weight_changes[{number - 1}]" if number else "data.sources"
        drawn = {name: weights[name] for name in sizes}
        stages.append((first, _shares(data, drawn, kind_weights, known, where)))
    return stages


def steps_of(stages: Sequence[tuple[int, Mapping[str, Fraction]]], source: str, step: int) -> float:
    """Returns how many of the first `step` steps draw a source if shares are met exactly."""
    firsts = [min(first, step) for first, _ in stages] + [step]
    spans = zip(firsts, firsts[1:], stages, strict=False)
    return float(sum((after - first) * shares[source] for first, after, (_, shares) in spans))


def _shares(
    data: DataConfig,
    weights: Mapping[str, float],
    kind_weights: Mapping[str, float] | None,
    sizes: Mapping[str, int],
    where: str,
) -> dict[str, Fraction]:
    """Returns each source's exact share of the steps."""
    masses = {
        name: _exact(weight) * (sizes[name] if data.weigh_by_size else 1) for name, weight in weights.items()
    }
    if not any(masses.values()) or min(masses.values()) < 0:
        raise ConfigError(f"{where}: weights {dict(weights)} must be non-negative, and one of them positive")
    if kind_weights is None:
        return {name: mass / sum(masses.values()) for name, mass in masses.items()}
    kinds = {name: data.sources[name].step_kind for name in weights}
    sums = {
        kind: sum(mass for name, mass in masses.items() if kinds[name] == kind)
        for kind in {*kinds.values(), *kind_weights}
    }
    shares = {kind: _exact(kind_weights.get(kind, 0)) for kind in sums}
    for kind, share in shares.items():
        if share and not sums[kind]:
            raise ConfigError(
                f"{where}: kind_weights give {kind} steps {float(share):g}, but no source of that kind "
                "has a weight"
            )
    total = sum(shares.values())
    return {
        name: shares[kinds[name]] / total * mass / sums[kinds[name]] if mass else Fraction(0)
        for name, mass in masses.items()
    }


def _exact(weight: float) -> Fraction:
    """Converts a weight by its decimal digits, so that 0.7, 0.15 and 0.15 sum to 1."""
    return Fraction(str(float(weight)))
