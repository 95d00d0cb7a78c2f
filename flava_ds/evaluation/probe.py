"""Linear probes: what logistic regression reads off the frozen states of images or texts."""

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
    """The penalty is chosen on the validation split, or on a fifth of the training samples; the probe is then
    fitted on both, and tested once.

    Source: paper, section 4, and CLIP.
    """

    name: str
    data: EvaluationData

    @abstractmethod
    def features(self, model: FrozenModel, samples: Any) -> np.ndarray:
        """Returns the samples' states: [N d] fp32."""

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns accuracy, the mean over classes, and for two classes the area under the ROC curve."""
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
        """Returns a split's states and labels. Raises: DataError when it has one class only."""
        samples = data.read(split)
        if len(np.unique(samples.labels)) < 2:
            raise DataError(
                f"{samples.name}: split '{split}' has samples of one class only, so a probe has nothing "
                "to learn"
            )
        return self.features(model, samples), samples.labels


@dataclass(frozen=True)
class ImageProbe(Probe):
    """Tells an image's class from its state in the image encoder, before any projection."""

    transform: Transform = CLIP_TRANSFORM
    about: ClassVar[str] = "logistic regression on frozen image states"
    needs: ClassVar[tuple[type, ...]] = (ImageFeatures,)

    def features(self, model: FrozenModel, samples: LabelledImages) -> np.ndarray:
        """Encodes the pictures."""
        return model.image_features(Seen(samples, self.transform), f"task {self.name}").float().cpu().numpy()


@dataclass(frozen=True)
class TextProbe(Probe):
    """Tells a text's class from its state in the text encoder, before any projection."""

    about: ClassVar[str] = "logistic regression on frozen text states"
    needs: ClassVar[tuple[type, ...]] = (TextFeatures,)

    def features(self, model: FrozenModel, samples: LabelledTexts) -> np.ndarray:
        """Encodes the texts."""
        return model.text_features(samples.texts, f"task {self.name}").float().cpu().numpy()
