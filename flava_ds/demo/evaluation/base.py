"""What the demo measures on its held-out data, one class per kind of measurement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.evaluation.frozen_model import FrozenModel

CHANCE, PIXELS = "/chance", "/pixel_1nn"
"""Suffixes of a metric's name under which its reference values stand: guessing, and the nearest neighbour on
raw pixels."""


class Unavailable(Exception):
    """A measurement that this run cannot have; the message says why."""


class Measurement(ABC):
    """Measures one thing on the demo's held-out data: the same constructor for all, the same result for the
    same weights.

    Metrics are named '<measurement>/<set>/<what>'. Accuracies and recalls are shares in [0, 1]; a name that
    ends in '_nats' is a mean cross-entropy. A name with the suffix '/chance' or '/pixel_1nn' is the reference
    that its metric is to be read beside.
    """

    name: ClassVar[str]

    def __init__(self, inputs: Inputs):
        self.inputs = inputs

    @property
    def asked_by(self) -> str:
        """Who asks a model for what it may lack."""
        return f"the demo's {self.name}"

    @abstractmethod
    def run(self, model: FrozenModel) -> dict[str, float]:
        """Returns the metrics.

        Raises: Unavailable or Lacking when the run has not what this measurement needs.
        """
