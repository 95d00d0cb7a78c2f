"""A new objective in one file: the image encoder also predicts the mean colour of each picture.

    flava-ds train docs/examples/mean_colour.py:recipe

An objective needs a config, which the command line and config.json know by its `type`, and a module with the
head and the loss. The loss is a sum over counted terms, never a mean: the trainer divides by the count of all
micro-batches and ranks, so the result does not depend on how the batch is split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.objectives.base import Loss, Objective
from flava_ds.recipes.flava_debug import flava_debug


@dataclass(frozen=True, kw_only=True)
class MeanColourConfig(ObjectiveConfig, type="mean_colour"):
    """Mean colour of a picture, from its CLS."""

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "Mean colour"

    def build(self, config: Any) -> MeanColour:
        return MeanColour(self.weight, config.model.shape_of("image").hidden_size)


class MeanColour(Objective):
    """Squared error of the mean of each channel, on the [0, 1] scale."""

    kinds = MeanColourConfig.kinds
    needs = frozenset({"image"})
    metrics: ClassVar[Mapping[str, str]] = {"distance": "distance"}

    def __init__(self, weight: float, hidden_size: int) -> None:
        super().__init__(weight)
        self.head = nn.Linear(hidden_size, 3)

    def count(self, batch: Batch) -> int:
        return batch.size

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {"image": model.first_rows("image", batch)}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        predicted = self.head(hidden["image"]).float()  # [b 3]
        wanted = batch["pixel_values"].float().mean(dim=(2, 3)) / 255
        distance = (predicted.detach() - wanted).abs().mean(dim=1).sum()
        return Loss(F.mse_loss(predicted, wanted, reduction="sum"), self.count(batch), {"distance": distance})


def recipe() -> Config:
    """Returns flava_debug with the objective beside FLAVA's six."""
    base = flava_debug()
    objectives = {**base.objectives, "mean_colour": MeanColourConfig(weight=0.5)}
    return dataclasses.replace(base, name="mean_colour", objectives=objectives)
