"""Reads a run's log.jsonl: one header, then one line per logged step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flava_ds.config.plain_files import loads


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
    header: dict[str, Any] = {}
    steps: dict[int, dict[str, Any]] = {}
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = loads(text)
            except ValueError:
                continue
            if (
                isinstance(line, dict)
                and isinstance(line.get("step"), int)
                and any(key.startswith("loss") or key == "lr" for key in line)
            ):
                steps[line["step"]] = line
            elif isinstance(line, dict) and not header:
                header = line
    return RunLog(header, [steps[step] for step in sorted(steps)])


def logged_losses(log: RunLog) -> dict[str, dict[str, float]]:
    """Returns each objective's first and last logged training loss: name -> {"first": nats, "last": nats}."""
    found = {}
    for name in log.names("loss/"):
        _, values = log.series(f"loss/{name}")
        if values:
            found[name] = {"first": values[0], "last": values[-1]}
    return found
