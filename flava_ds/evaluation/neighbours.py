"""Classification by the nearest training images in the space of frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import LabelledImages, Seen
from flava_ds.evaluation.nearest import best_of
from flava_ds.evaluation.preprocessing import DINO_TRANSFORM, Transform
from flava_ds.evaluation.probe import check_classes, refuse_training_split
from flava_ds.evaluation.protocols import EvaluationData, ImageFeatures, Score, Splits
from flava_ds.evaluation.statistics import share

TEMPERATURE = 0.07


@dataclass(frozen=True)
class Neighbours:
    """The k nearest training images vote, each by exp(similarity / 0.07).

    Source: DINO's protocol: image features, L2-normalised, k 20.
    """

    name: str
    data: EvaluationData
    k: int = 20
    transform: Transform = DINO_TRANSFORM
    about: ClassVar[str] = "nearest neighbours among the training images (k 20)"
    suite: ClassVar[str] = "vision"
    group: ClassVar[str] = "vision probes"
    needs: ClassVar[tuple[type, ...]] = (ImageFeatures,)

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns top-1 accuracy."""
        refuse_training_split(self.name, data)
        train: LabelledImages = data.read("train")
        test: LabelledImages = data.test()
        check_classes(test, train.labels, test.labels, data.limit)
        asked_by = f"task {self.name}"
        keys, queries = (
            F.normalize(model.image_features(Seen(samples, self.transform), asked_by).float(), dim=1)
            for samples in (train, test)
        )
        labels = torch.from_numpy(train.labels).to(keys.device)
        predicted = vote(queries, keys, labels, self.k, len(train.class_names))
        return {"top1_accuracy": share(predicted.cpu().numpy() == test.labels)}


def vote(queries: Tensor, keys: Tensor, labels: Tensor, k: int, classes: int) -> Tensor:
    """Returns the class with the most weight among each query's k nearest keys.

    Shapes:
        queries  [q d]  L2-normalised
        keys     [m d]  L2-normalised
        labels   [m]    int64
        returns  [q]    int64
    """
    found = []
    for similarity, nearest in best_of(queries, keys, k):
        votes = torch.zeros(len(nearest), classes, device=nearest.device)
        found.append(votes.scatter_add(1, labels[nearest], (similarity / TEMPERATURE).exp()).argmax(1))
    return torch.cat(found)
