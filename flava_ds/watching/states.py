"""What training states report for the log, and what they complain of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flava_ds.objectives.state import TrainingState
from flava_ds.ranks.distributed import log
from flava_ds.watching.log_fields import metric_key


class StateReports:
    """Reads the states' numbers for a line of the log, and warns once when one begins to complain."""

    def __init__(self, states: Mapping[str, TrainingState]) -> None:
        self.states = states
        self._complaining: set[str] = set()

    def tensors(self) -> dict[str, Tensor]:
        """Returns the scalars that the states report, by their keys in the log."""
        return {
            _key(number, name): value
            for name, state in self.states.items()
            for number, value in state.report().items()
        }

    def warn(self, record: Mapping[str, Any]) -> None:
        """Logs a complaint that the previous record did not cause."""
        complaining = set()
        for name, state in self.states.items():
            numbers = {number: record[_key(number, name)] for number in state.report()}
            told = state.complaint(numbers)
            if told is not None:
                complaining.add(name)
                if name not in self._complaining:
                    log.warning("%s: %s", _owner(name), told)
        self._complaining = complaining


def _key(number: str, name: str) -> str:
    """Returns the key in the log of what the state `name` reports as `number`."""
    return number if "/" in number else metric_key(number, _owner(name))


def _owner(name: str) -> str:
    """Returns the objective that keeps a state, or the family's name of the state."""
    return name.rpartition(".")[0] or name
