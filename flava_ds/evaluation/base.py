"""The contract of an evaluator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from flava_ds.evaluation.encoding import FrozenModel
from flava_ds.evaluation.inputs import Inputs

CHANCE, PIXELS = "/chance", "/pixel_1nn"
"""Suffixes of a metric's name under which its reference values stand: guessing, and the nearest neighbour on raw pixels."""


class Unavailable(Exception):
    """An evaluation that this run cannot have; the message says why."""


class Evaluator(ABC):
    """Measures one thing on held-out data: the same constructor for all, and the same result for the same weights.

    Metrics are named '<evaluator>/<set>/<what>'. Accuracies and recalls are shares in [0, 1]; a name that ends in '_nats' is a mean
    cross-entropy. A name with the suffix '/chance' or '/pixel_1nn' is the reference that its metric is to be read beside.
    """

    name: ClassVar[str]

    def __init__(self, inputs: Inputs):
        self.inputs = inputs

    @abstractmethod
    def run(self, model: FrozenModel) -> dict[str, float]:
        """Returns the metrics.

        Raises: Unavailable when the run lacks what this evaluator needs.
        """
