"""Rates of a machine's own cores, measured by benchmarks/plan_rates.py: then a plan needs no assumption.

A core runs one operator after the other, and the Python between them is time of its own. So a step is

    sum over operators of (fixed + per_byte * bytes + per_flop * FLOPs)      of its operator's name
    + fixed + per_byte * bytes of the update + per_call * operators          beyond the operators
    + collectives, by their measured times at other sizes
    + the loader's samples, unless a worker on an idle core reads them

Nothing here is fitted to the step that is forecast.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

TURNS = 30
"""Of the reweighting in `fitted_rate`; the weights settle within ten."""


@dataclass(frozen=True)
class CallRate:
    """Seconds of one call as a sum of what it moves and computes."""

    fixed: float = 0.0
    per_byte: float = 0.0
    per_flop: float = 0.0

    def seconds(self, moved: float, flops: float = 0.0) -> float:
        """Returns the time of a call that moves so many bytes and does so many FLOPs."""
        return self.fixed + self.per_byte * moved + self.per_flop * flops


@dataclass(frozen=True)
class HostRates:
    """What one core reaches while `busy` of them compute."""

    busy: int
    cores: int
    operators: Mapping[str, CallRate]
    """By operator's name."""
    others: CallRate
    """Of operators that were not measured: all that are no products, taken together."""
    convolution_flops: float
    """FLOP/s of the image codebook."""
    beyond: CallRate
    """Of a step beyond its operators; `per_byte` counts the update's bytes."""
    per_call: float
    """Seconds between two operators: Python, autograd and DeepSpeed's hooks."""
    collectives: Mapping[str, Sequence[tuple[float, float]]]
    """Collective -> (payload in bytes, seconds), by size."""
    loader: Mapping[str, float]
    """Source -> seconds of the loader for a sample."""

    def operator(self, name: str, moved: float, flops: float) -> float:
        """Returns the seconds of one call of an operator."""
        return self.operators.get(name, self.others).seconds(moved, flops)

    def collective(self, name: str, payload: float) -> float:
        """Returns the seconds of a collective, between its measured sizes, or in proportion beyond them."""
        sizes, seconds = np.array(self.collectives[name]).T
        if payload > sizes[-1]:
            return float(seconds[-1] * payload / sizes[-1])
        return float(np.interp(payload, sizes, seconds))

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return asdict(self)

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> HostRates:
        """Reads what `as_json` has returned."""
        rates = {name: CallRate(**found[name]) for name in ("others", "beyond")}
        operators = {name: CallRate(**rate) for name, rate in found["operators"].items()}
        return HostRates(**{**found, **rates, "operators": operators})


def fitted_rate(features: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Fits seconds = features @ x with x >= 0, by weights of 1 / expected seconds, so that totals agree.

    Calls of ten microseconds and of ten milliseconds are off by about the same share, and many small calls
    count as much as a few large ones.

    Shapes:
        features  [n, k]  k <= 3; the first column is 1
        seconds   [n]
        returns   [k]
    """
    floor = 1e-7 + 1e-3 * float(seconds.mean())
    weights, best = 1 / np.maximum(seconds, floor), np.zeros(features.shape[1])
    for _ in range(TURNS):
        best = _non_negative(features, seconds, weights)
        weights = 1 / np.maximum(features @ best, floor)
    return best


def _non_negative(features: np.ndarray, seconds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the non-negative least squares: the best of all subsets of columns whose solution is."""
    root = np.sqrt(weights)
    scale = np.maximum(np.abs(features).max(axis=0), 1e-300)
    found, least = np.zeros(features.shape[1]), np.inf
    columns = range(features.shape[1])
    for size in columns:
        for chosen in itertools.combinations(columns, size + 1):
            part = list(chosen)
            own = features[:, part] / scale[part] * root[:, None]
            solved = np.linalg.lstsq(own, seconds * root, rcond=None)[0]
            error = float(np.square(own @ solved - seconds * root).sum())
            if (solved >= 0).all() and error < least:
                least, found = error, np.zeros(features.shape[1])
                found[part] = solved / scale[part]
    return found


def call_rate(rows: Sequence[tuple[float, float, float]]) -> CallRate:
    """Fits the rate of one operator to (bytes, FLOPs, seconds) of its calls."""
    moved, flops, seconds = np.array(rows, dtype=float).T
    features = [np.ones_like(moved), moved] + ([flops] if flops.any() else [])
    return CallRate(*map(float, fitted_rate(np.stack(features, axis=1), seconds)))
