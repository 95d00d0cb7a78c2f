"""What an objective is: the step kinds it takes part in, the views it reads, and a loss as a sum over counted terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from flava_ds.batch import Batch, Kind, Loss, View
from flava_ds.families.flava.model import Flava
from flava_ds.layers.transformer import Encoded


class Objective(nn.Module, ABC):
    """Owns its head; reads encoded views; never changes the batch."""

    kinds: ClassVar[frozenset[Kind]]
    needs: ClassVar[frozenset[View]]

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Number of terms of this objective's sum in `batch`, known without the device."""

    @abstractmethod
    def reads(self, model: Flava, batch: Batch) -> dict[View, Tensor]:
        """Rows of each needed view's packed output that `forward` reads, sorted: [k]."""

    @abstractmethod
    def forward(self, model: Flava, encoded: dict[View, Encoded], batch: Batch) -> Loss:
        """Sums the loss over the terms that `count` counts; with none of them, returns a zero that keeps the graph."""

    def model_parameters(self, model: Flava) -> set[str]:
        """Names of the model's parameters that get a gradient from this objective."""
        return set().union(*(model.parameters_of(view, read_directly=True) for view in self.needs))
