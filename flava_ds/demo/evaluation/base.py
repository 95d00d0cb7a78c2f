"""Base class of the demo's measurements on held-out data, one class per kind of measurement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.evaluation.frozen_model import FrozenModel

CHANCE, PIXELS = "/chance", "/pixel_1nn"
"""Suffixes of a metric's reference values: guessing, and the nearest neighbour on raw pixels."""


class Unavailable(Exception):
    """A measurement that is impossible for this run; the message says why."""


class Measurement(ABC):
    """Measures one thing on the demo's held-out data; equal weights give equal results.

    Metrics are named '<measurement>/<set>/<what>'. Accuracies and recalls are shares in [0, 1]; a name that
    ends in '_nats' is a mean cross-entropy. The suffixes '/chance' and '/pixel_1nn' mark a metric's reference
    values.
    """

    name: ClassVar[str]

    def __init__(self, inputs: Inputs):
        self.inputs = inputs

    @property
    def asked_by(self) -> str:
        """Name of the measurement in errors about missing capabilities."""
        return f"the demo's {self.name}"

    @abstractmethod
    def run(self, model: FrozenModel) -> dict[str, float]:
        """Returns the metrics.

        Raises: Unavailable or Lacking if the run lacks what this measurement needs.
        """
