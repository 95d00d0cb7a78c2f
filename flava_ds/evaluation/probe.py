"""Linear probes: logistic regression on frozen image or text features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import LabelledImages, LabelledTexts, Seen
from flava_ds.evaluation.logistic import choose_penalty, fit_as_clip, hold_out
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM, Transform
from flava_ds.evaluation.protocols import EvaluationData, ImageFeatures, Score, Splits, TextFeatures
from flava_ds.evaluation.statistics import mean_per_class, roc_area, share


@dataclass(frozen=True)
class Probe(ABC):
    """Chooses the penalty on the validation split or a fifth of the training samples, fits on both, tests.

    Source: paper, section 4, and CLIP.
    """

    name: str
    data: EvaluationData

    @abstractmethod
    def features(self, model: FrozenModel, samples: Any) -> np.ndarray:
        """Returns the samples' features: [N d] fp32."""

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns accuracy, its mean over classes and, for two classes, the area under the ROC curve."""
        test = data.test()
        train, labels = self._read(model, data, "train")
        with_validation = data.split != "val" and data.has("val")
        if with_validation:
            validation = self._read(model, data, "val")
            penalty = choose_penalty((train, labels), validation)
            train, labels = np.concatenate([train, validation[0]]), np.concatenate([labels, validation[1]])
        else:
            held = hold_out(labels)
            penalty = choose_penalty((train[~held], labels[~held]), (train[held], labels[held]))
        probe = fit_as_clip(train, labels, penalty)
        features = self.features(model, test)
        hits = probe.predict(features) == test.labels
        scores = {"accuracy": share(hits), "mean_per_class_accuracy": mean_per_class(hits, test.labels)}
        if len(test.class_names) == 2 and len(np.unique(test.labels)) == 2:
            scores["roc_area"] = roc_area(probe.decision_function(features), test.labels)
        return scores

    def _read(self, model: FrozenModel, data: Splits, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns a split's features and labels. Raises: DataError if it has only one class."""
        samples = data.read(split)
        if len(np.unique(samples.labels)) < 2:
            raise DataError(
                f"{samples.name}: split '{split}' has samples of only one class, so there is nothing to learn"
            )
        return self.features(model, samples), samples.labels


@dataclass(frozen=True)
class ImageProbe(Probe):
    """Predicts an image's class from the image encoder's features, before any projection."""

    transform: Transform = CLIP_TRANSFORM
    about: ClassVar[str] = "logistic regression on frozen image features"
    needs: ClassVar[tuple[type, ...]] = (ImageFeatures,)

    def features(self, model: FrozenModel, samples: LabelledImages) -> np.ndarray:
        """Encodes the images."""
        return model.image_features(Seen(samples, self.transform), f"task {self.name}").float().cpu().numpy()


@dataclass(frozen=True)
class TextProbe(Probe):
    """Predicts a text's class from the text encoder's features, before any projection."""

    about: ClassVar[str] = "logistic regression on frozen text features"
    needs: ClassVar[tuple[type, ...]] = (TextFeatures,)

    def features(self, model: FrozenModel, samples: LabelledTexts) -> np.ndarray:
        """Encodes the texts."""
        return model.text_features(samples.texts, f"task {self.name}").float().cpu().numpy()
