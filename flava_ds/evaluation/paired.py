"""Whether one row of an ablation is better than another: paired differences of several seeds on the same
items, and a correction for how many questions are asked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, SEED = 10_000, 0
CHUNK = 500
"""Resamples that exist at one time."""
LEVEL = 0.05
"""Largest adjusted p of a difference that is not chance."""


@dataclass(frozen=True)
class Measured:
    """One number of a row, with what it is the mean of. The items of a cluster, e.g. the drawings of one
    concept, are resampled together.

    Shapes:
        sums    [S C]  sum of the values over the items of each cluster, for each seed
        counts  [C]    items of each cluster
    """

    clusters: str
    """Which clusters these are; numbers of the same clusters are resampled together."""
    sums: np.ndarray
    counts: np.ndarray

    def values(self) -> np.ndarray:
        """Returns the mean over all items, for each seed: [S]."""
        return self.sums.sum(axis=1) / self.counts.sum()

    def minus(self, other: Measured) -> Measured:
        """Returns the paired difference: seed by seed, item by item."""
        assert self.clusters == other.clusters and np.array_equal(self.counts, other.counts)
        return Measured(self.clusters, self.sums - other.sums, self.counts)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and items, and what resampling says of it."""

    value: float
    standard_error: float
    p: float
    """Two-sided, of no difference from zero."""
    interval: tuple[float, float]
    """Between which 95 % of the resamples lie."""


def bootstrap(parts: Sequence[tuple[float, Measured]], resamples: int = RESAMPLES) -> Estimate:
    """Estimates the sum of weight * number over `parts`.

    Each resample draws the clusters of every set and the seeds, both with replacement; all seeds see the same
    clusters, as they saw the same items. Of S seeds a resample of them varies too little, by the factor (S -
    1) / S of the variance, so the seeds' part is stretched by that. With two or three seeds it remains
    somewhat optimistic, since a normal law has shorter tails than that of few seeds.

    Source: Davison and Hinkley 1997, section 3.8 (hierarchical data); Hesterberg 2015, "What teachers should
    know about the bootstrap" (the factor).

    Raises: ValueError for fewer than two seeds, which say nothing of their spread.
    """
    seeds = len(parts[0][1].sums)
    if seeds < 2:
        raise ValueError(f"{seeds} seed: at least two are needed")
    stretch, drawn = math.sqrt(seeds / (seeds - 1)), []
    sizes = {part.clusters: len(part.counts) for _, part in parts}
    for clusters, chosen_seeds in draws(tuple(sizes.items()), seeds, resamples):
        times = {name: own.astype(np.float64) for name, own in clusters.items()}
        by_seed = sum(
            weight * (times[part.clusters] @ part.sums.T) / (times[part.clusters] @ part.counts)[:, None]
            for weight, part in parts
        )
        of_all = by_seed.mean(axis=1)
        chosen = np.take_along_axis(by_seed, chosen_seeds, axis=1).mean(axis=1)
        drawn.append(of_all + stretch * (chosen - of_all))
    found = np.concatenate(drawn)
    low, high = np.percentile(found, [2.5, 97.5])
    tail = min((found <= 0).sum(), (found >= 0).sum())
    value = float(sum(weight * part.values().mean() for weight, part in parts))
    p = min(1.0, 2 * (int(tail) + 1) / (resamples + 1))
    return Estimate(value, float(found.std(ddof=1)), p, (float(low), float(high)))


@functools.lru_cache(maxsize=4)
def draws(
    sizes: tuple[tuple[str, int], ...], seeds: int, resamples: int
) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Draws resamples in chunks. A table asks for the same ones for each of its cells, and drawing them is
    nearly all of the work.

    Shapes:
        sizes    (name, C) of each set of clusters
        returns  how often each cluster occurs, by the set's name [chunk C] uint8, and seeds [chunk S]
    """
    draw, found = np.random.default_rng(SEED), []
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        times = {name: draw.multinomial(count, np.full(count, 1 / count), size) for name, count in sizes}
        assert all(own.max() < 256 for own in times.values())
        small = {name: own.astype(np.uint8) for name, own in times.items()}
        found.append((small, draw.integers(seeds, size=(size, seeds))))
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Adjusts p-values for their number, so that one under 0.05 among true null hypotheses is rarer than 1 in
    20 for all of them together.

    Source: Holm 1979.
    """
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = highest
    return adjusted


def verdict(difference: float, adjusted_p: float) -> str:
    """Returns `holds` or `reversed` for a difference that is not chance, by its sign, else `unresolved`."""
    if adjusted_p >= LEVEL:
        return "unresolved"
    return "holds" if difference > 0 else "reversed"
