"""Linear probes: logistic regression on frozen image or text features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from flava_ds.errors import DataError
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import LabelledImages, LabelledTexts, Seen
from flava_ds.evaluation.logistic import choose_penalty, hold_out, solver_for
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM, Transform
from flava_ds.evaluation.protocols import EvaluationData, ImageFeatures, Score, Splits, TextFeatures
from flava_ds.evaluation.statistics import mean_per_class, roc_area, share, share_over_folds


@dataclass(frozen=True)
class Probe(ABC):
    """Chooses the penalty on the validation split or a fifth of the training samples, fits on both, tests.

    Source: paper, section 4, and CLIP.
    """

    name: str
    data: EvaluationData

    @abstractmethod
    def features(self, model: FrozenModel, samples: Any) -> Tensor:
        """Returns the samples' features: [N d], in the model's dtype on its device."""

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns accuracy, its mean over classes and, for two classes, the area under the ROC curve."""
        refuse_training_split(self.name, data)
        test = data.test()
        train, labels = self._read(model, data, "train")
        check_classes(test, np.unique(labels), test.labels, data.limit)
        if data.split != "val" and data.has("val"):
            validation = self._read(model, data, "val")
            penalty = choose_penalty(solver_for(train), (train, labels), validation)
            train, labels = torch.cat([train, validation[0]]), np.concatenate([labels, validation[1]])
        else:
            penalty = penalty_by_holding_out(test.name, train, labels)
        [probe] = solver_for(train)(train, labels, [penalty])
        features = self.features(model, test)
        hits = probe.predict(features) == test.labels
        scores = {"accuracy": share(hits), "mean_per_class_accuracy": mean_per_class(hits, test.labels)}
        if len(test.class_names) == 2 and len(np.unique(test.labels)) == 2:
            scores["roc_area"] = roc_area(probe.decision_function(features), test.labels)
        return scores

    def _read(self, model: FrozenModel, data: Splits, split: str) -> tuple[Tensor, np.ndarray]:
        """Returns a split's features and labels. Raises: DataError if it has only one class."""
        samples = data.read(split)
        check_learnable(samples.name, f"split '{split}'", samples.labels)
        return self.features(model, samples), samples.labels


def refuse_training_split(name: str, data: Splits) -> None:
    """Raises DataError for a report on the very samples that the task learns from."""
    if data.split == "train":
        raise DataError(
            f"task {name}: learns from split 'train', so a report on it says nothing; name another"
        )


def check_learnable(name: str, part: str, labels: np.ndarray) -> None:
    """Raises DataError if there is only one class to learn from."""
    if len(np.unique(labels)) < 2:
        raise DataError(f"{name}: {part} has samples of only one class, so there is nothing to learn")


def penalty_by_holding_out(name: str, train: Tensor, labels: np.ndarray) -> float:
    """Returns the penalty that does best on a fifth of each class after learning from the rest.

    Raises: DataError when no class has two samples.
    """
    held = hold_out(labels)
    if not held.any():
        raise DataError(f"{name}: no class has two training samples, so no penalty can be chosen; take more")
    kept, tried = (torch.from_numpy(rows).to(train.device) for rows in (~held, held))
    return choose_penalty(solver_for(train), (train[kept], labels[~held]), (train[tried], labels[held]))


def check_classes(samples: Any, learned: np.ndarray, tested: np.ndarray, limit: int | None) -> None:
    """Raises DataError when the reported samples have a class that the training split lacks.

    Under a limit nothing is said: it may have cut them away.
    """
    unknown = np.setdiff1d(tested, learned)
    if len(unknown) and limit is None:
        raise DataError(
            f"{samples.name}: the training split has no sample of class "
            f"'{samples.class_names[unknown[0]]}' ({len(unknown)} such classes), which the "
            "reported split has; unpack the whole training split"
        )


@dataclass(frozen=True)
class ImageProbe(Probe):
    """Predicts an image's class from the image encoder's features, before any projection."""

    transform: Transform = CLIP_TRANSFORM
    about: ClassVar[str] = "logistic regression on frozen image features"
    suite: ClassVar[str] = "vision"
    group: ClassVar[str] = "vision probes"
    needs: ClassVar[tuple[type, ...]] = (ImageFeatures,)

    def features(self, model: FrozenModel, samples: LabelledImages) -> Tensor:
        return model.image_features(Seen(samples, self.transform), f"task {self.name}")

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Does the same fold by fold, and averages over them, where a data set is published in folds."""
        samples: LabelledImages = data.test()
        if not samples.folds:
            return super().run(model, data)
        features, found = self.features(model, samples), []
        for number, fold in enumerate(samples.folds, start=1):
            labels, tested = samples.labels[fold.train], samples.labels[fold.test]
            check_learnable(samples.name, f"fold {number}", labels)
            check_classes(samples, np.unique(labels), tested, data.limit)
            train = features[torch.from_numpy(fold.train).to(features.device)]
            penalty = penalty_by_holding_out(samples.name, train, labels)
            [probe] = solver_for(train)(train, labels, [penalty])
            found.append(probe.predict(features[torch.from_numpy(fold.test).to(features.device)]) == tested)
        means = [
            mean_per_class(hits, samples.labels[fold.test]).value
            for hits, fold in zip(found, samples.folds, strict=True)
        ]
        accuracy = share_over_folds(found, [fold.test for fold in samples.folds])
        return {
            "accuracy": accuracy,
            "mean_per_class_accuracy": Score(float(np.mean(means)), accuracy.n, None),
        }


@dataclass(frozen=True)
class TextProbe(Probe):
    """Predicts a text's class from the text encoder's features, before any projection."""

    about: ClassVar[str] = "logistic regression on frozen text features"
    suite: ClassVar[str] = "text"
    group: ClassVar[str] = "language"
    needs: ClassVar[tuple[type, ...]] = (TextFeatures,)

    def features(self, model: FrozenModel, samples: LabelledTexts) -> Tensor:
        """Encodes the texts. Raises: DataError for pairs of texts."""
        if samples.second is not None:
            raise DataError(
                f"task {self.name}: {samples.name} has pairs of texts, and a probe reads one; fine-tune "
                "instead (see --list), or leave the second column out"
            )
        return model.text_features(samples.texts, f"task {self.name}")
