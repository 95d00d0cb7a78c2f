"""Reads a run's log.jsonl: one header, then one line per logged step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flava_ds.config.plain_files import loads

Kept = TypeVar("Kept")
LOWER = "evaluation_lower_is_better"
"""Log field: the names of the tasks' numbers of which lower is better, with commas between them."""


@dataclass(frozen=True)
class RunLog:
    """A run's header (versions, hardware, configuration; empty if missing) and its logged steps in order."""

    header: dict[str, Any]
    steps: list[dict[str, Any]]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Returns the steps at which a number was logged and its finite values."""
        points = [
            (line["step"], float(line[name]))
            for line in self.steps
            if isinstance(line.get(name), int | float)
        ]
        points = [(step, value) for step, value in points if value == value and abs(value) != float("inf")]
        return [step for step, _ in points], [value for _, value in points]

    def not_finite_from(self, name: str) -> int | None:
        """Returns the step from which on no logged value of a number is finite, null among them; None where
        the last one is finite, or none was logged.
        """
        logged = [line["step"] for line in self.steps if name in line]
        finite, _ = self.series(name)
        return next((step for step in logged if not finite or step > finite[-1]), None)

    def names(self, prefix: str) -> list[str]:
        """Returns what follows `prefix` in the logged keys, in order of first appearance."""
        return list(
            dict.fromkeys(
                key.removeprefix(prefix) for line in self.steps for key in line if key.startswith(prefix)
            )
        )


def read_log(path: Path) -> RunLog:
    """Reads a log; a missing file gives an empty one, and a last line that a crash cut off is ignored.

    A resumed run may repeat steps; the last line of a step counts.
    """
    # every line has the same keys, which json makes anew for each
    return RunLog(*read_lines(path, lambda line: {sys.intern(key): value for key, value in line.items()}))


def read_lines(
    path: Path, kept: Callable[[dict[str, Any]], Kept], before: float = math.inf
) -> tuple[dict[str, Any], list[Kept]]:
    """Reads a log as `read_log` does, one line at a time.

    Returns the header, and what `kept` makes of the record of each step before step `before`.
    """
    header: dict[str, Any] = {}
    steps: dict[int, Kept] = {}
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in (text for line in file for text in line.splitlines()):
                try:
                    line = loads(text)
                except ValueError:
                    continue
                if not isinstance(line, dict):
                    continue
                if _is_step(line):
                    if line["step"] < before:
                        steps[line["step"]] = kept(line)
                elif not header:
                    header = line
    return header, [steps[step] for step in sorted(steps)]


def lower_is_better(log: RunLog) -> list[str]:
    """Returns the tasks' numbers of which lower is better, as their tasks said during the run."""
    return sorted({name for line in log.steps for name in lower_in(line)})


def lower_in(record: Mapping[str, Any]) -> list[str]:
    """Returns the names in a record's LOWER."""
    return record[LOWER].split(",") if isinstance(record.get(LOWER), str) else []


def _is_step(line: dict[str, Any]) -> bool:
    """Tells a step's record from a header."""
    return isinstance(line.get("step"), int) and any(key.startswith("loss") or key == "lr" for key in line)


def logged_losses(log: RunLog) -> dict[str, dict[str, float]]:
    """Returns each objective's first and last logged training loss: name -> {"first": nats, "last": nats},
    without those that are not finite at the end.
    """
    found = {}
    for name in log.names("loss/"):
        _, values = log.series(f"loss/{name}")
        if values and log.not_finite_from(f"loss/{name}") is None:
            found[name] = {"first": values[0], "last": values[-1]}
    return found
