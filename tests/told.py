"""What tests have measured of families, for benchmarks/family_equality.py, which reads their JUnit XML."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Told:
    """The largest differences of one test. A test that names no family tells nothing."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def parity(self, family: str, reference: str, dtype: Any, outputs: float, gradients: float) -> None:
        """Begins a comparison with a reference, whose differences may be `outputs` and `gradients`."""
        limits = {"outputs": outputs, "gradients": gradients}
        where = {"family": family, "reference": reference, "dtype": str(dtype).removeprefix("torch.")}
        self.rows.append({"table": "parity", **where, "limits": limits, "found": {}})

    def of(self, what: str, difference: float) -> float:
        """Notes a difference of "outputs" or "gradients", and returns it."""
        found = self.rows[-1]["found"]
        found[what] = max(found.get(what, 0.0), difference)
        return difference

    def output(self, difference: float) -> float:
        """Notes a difference of outputs, and returns it."""
        return self.of("outputs", difference)

    def gradient(self, difference: float) -> float:
        """Notes a difference of gradients, and returns it."""
        return self.of("gradients", difference)

    def gradients(self, apart: Mapping[str, float], limit: float) -> None:
        """Notes the largest of the differences by parameter, and expects it to be at most `limit`."""
        largest_first = sorted(apart.items(), key=lambda own: -own[1])
        assert self.gradient(largest_first[0][1]) <= limit, largest_first[:5]

    def split(
        self, family: str, split: str, found: Sequence[float], expected: Sequence[float], limit: float
    ) -> None:
        """Notes how far losses of a split of the batch are from one rank's, by their own size."""
        apart = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
        where = {"family": family, "split": split, "losses": len(expected)}
        self.rows.append({"table": "splits", **where, "limit": limit, "found": apart})

    def write(self, record: Callable[[str, Any], None]) -> None:
        """Hands over what was noted, to pytest's record_property."""
        for row in self.rows:
            numbers = [row["found"]] if row["table"] == "splits" else [*row["found"].values()]
            assert numbers and all(math.isfinite(number) for number in numbers), row
            record("told", json.dumps(row))


def largest(ours: Any, theirs: Any) -> float:
    """Returns the largest absolute difference of two tensors over the largest absolute value of theirs."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).abs().max() / theirs.abs().max())
