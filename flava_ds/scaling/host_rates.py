"""Rates of a machine's own cores, measured by benchmarks/plan_rates.py: then a plan needs no assumption.

A core runs one operator after the other, and the Python between them is time of its own. So a step is

    sum over operators of (fixed + per_byte * bytes + per_flop * FLOPs)      of its operator's name
    + fixed + per_byte * bytes of the update + per_call * operators          beyond the operators
    + collectives, by their measured times at other sizes
    + the loader's samples, unless a worker on an idle core reads them

Nothing here is fitted to the step that is forecast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


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
