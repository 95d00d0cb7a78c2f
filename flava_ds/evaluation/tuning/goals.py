"""What a head learns and how it is scored: classes, a number, or answers of which several may be right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flava_ds.errors import DataError, UserError
from flava_ds.evaluation import agreement
from flava_ds.evaluation.datasets.scenes import TextsOfScenes
from flava_ds.evaluation.datasets.vqav2 import Questions
from flava_ds.evaluation.labelled import LabelledPairs, LabelledTexts
from flava_ds.evaluation.protocols import Score, Unit
from flava_ds.evaluation.statistics import mean_interval, roc_area, share
from flava_ds.evaluation.tuning.own_head import columns
from flava_ds.evaluation.vqa_answers import accuracy, label_of, targets

METRICS: dict[str, tuple[agreement.Statistic, Unit]] = {
    "f1": (agreement.f1, "share"),
    "accuracy_and_f1": (agreement.accuracy_and_f1, "share"),
    "matthews": (agreement.matthews, "correlation"),
    "pearson": (agreement.pearson, "correlation"),
    "spearman": (agreement.spearman, "correlation"),
    "pearson_and_spearman": (agreement.pearson_and_spearman, "correlation"),
}


@dataclass(frozen=True)
class Meaning:
    """What the outputs of a head say."""

    names: tuple[str, ...]
    """The classes, one for each output; empty if the only output is a number."""
    activation: Literal["softmax", "sigmoid", "identity"]
    """Turns outputs into probabilities, of which one class is right (softmax) or any number (sigmoid)."""
    scale: float = 1.0
    """By which a number is multiplied."""

    def __post_init__(self) -> None:
        """Raises: ValueError."""
        if self.activation not in ("softmax", "sigmoid", "identity"):
            raise ValueError(f"activation {self.activation!r}")

    @property
    def outputs(self) -> int:
        """Outputs of the head."""
        return len(self.names) or 1

    def of(self, logits: Tensor) -> Tensor:
        """Returns probabilities [b z], or numbers [b 1], of outputs of that shape."""
        if self.activation == "identity":
            return logits * self.scale
        return logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()


class Goal(Protocol):
    """A loss and its scores. `samples` are a split, `rows` some of its samples."""

    def check(self, train: Any, held_out: Mapping[str, Any]) -> None:
        """Raises DataError if the training split lacks what the others ask for."""

    def meaning(self, samples: Any) -> Meaning:
        """Returns what the outputs of a head say that learns these samples."""

    def targets(self, samples: Any, rows: np.ndarray) -> Tensor:
        """Returns the targets of some samples: [k] or [k outputs]."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns each sample's loss: [k outputs], [k] or [k outputs] -> [k]."""

    def scores(self, logits: np.ndarray, samples: Any) -> dict[str, Score]:
        """Scores a whole split: [N outputs] fp32."""

    def merit(self, logits: np.ndarray, samples: Any) -> float:
        """Returns the number that chooses the weights; higher is better."""

    def of_own_head(self, logits: np.ndarray, names: Sequence[str], samples: Any) -> tuple[np.ndarray, Any]:
        """Returns the outputs [N z] of a head that was fine-tuned elsewhere and names its classes, with the
        samples, as `scores` takes them. Raises: UserError if they do not fit.
        """


@dataclass(frozen=True)
class Classes:
    """One class is right. As in fairseq, accuracy chooses the epoch, whatever the task's number is."""

    metrics: tuple[str, ...] = ()
    """Numbers beside accuracy: names in METRICS, "roc_area", or, for texts of scenes, "majority": what the
    most frequent class of each kind of text would score."""
    chosen_by_roc_area: bool = False

    def check(self, train: Any, held_out: Mapping[str, Any]) -> None:
        """Raises DataError naming a class that the training split lacks."""
        known = set(train.labels.tolist())
        for split, samples in held_out.items():
            lacking = sorted(set(samples.labels.tolist()) - known)
            if lacking:
                raise DataError(
                    f"{train.name}: split 'train' has no sample of class '{train.class_names[lacking[0]]}', "
                    f"which split '{split}' has; a head cannot learn it, so complete 'train', or "
                    "raise --limit if one is set"
                )
        if len(known) < 2:
            raise DataError(
                f"{train.name}: split 'train' has samples of one class only, so a head has nothing to learn"
            )

    def meaning(self, samples: LabelledTexts | LabelledPairs) -> Meaning:
        """Returns the classes."""
        return Meaning(tuple(samples.class_names), "softmax")

    def targets(self, samples: LabelledTexts | LabelledPairs, rows: np.ndarray) -> Tensor:
        """Returns the classes."""
        return torch.from_numpy(samples.labels[rows])

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross-entropy in nats."""
        return F.cross_entropy(logits, targets, reduction="none")

    def scores(self, logits: np.ndarray, samples: LabelledTexts | LabelledPairs) -> dict[str, Score]:
        """Returns accuracy and the task's other numbers."""
        predicted, labels = logits.argmax(1), samples.labels
        found = {"accuracy": share(predicted == labels)}
        for name in self.metrics:
            if name == "roc_area":
                found[name] = roc_area(_odds(logits), labels)
            elif name == "majority" and isinstance(samples, TextsOfScenes):
                found[name] = share(samples.are_majority)
            else:
                statistic, unit = METRICS[name]
                found[name] = agreement.scored(statistic, predicted, labels, unit)
        return found

    def merit(self, logits: np.ndarray, samples: LabelledTexts | LabelledPairs) -> float:
        """Returns accuracy, or the area under the ROC curve."""
        if self.chosen_by_roc_area:
            return roc_area(_odds(logits), samples.labels).value
        return float(np.mean(logits.argmax(1) == samples.labels))

    def of_own_head(self, logits: np.ndarray, names: Sequence[str], samples: Any) -> tuple[np.ndarray, Any]:
        """Returns the outputs in the order of the samples' classes. Raises: UserError."""
        return logits[:, columns(names, samples.class_names)], samples


def _odds(logits: np.ndarray) -> np.ndarray:
    return logits[:, 1] - logits[:, 0]


@dataclass(frozen=True)
class Regression:
    """The label is a number from 0 to `highest`. As in fairseq, the loss chooses the epoch."""

    highest: float
    metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "pearson_and_spearman")

    def check(self, train: Any, held_out: Mapping[str, Any]) -> None:
        """Accepts any labels."""

    def meaning(self, samples: LabelledTexts) -> Meaning:
        """Returns a number: the label."""
        return Meaning((), "identity", self.highest)

    def targets(self, samples: LabelledTexts, rows: np.ndarray) -> Tensor:
        """Returns the labels as shares of the highest one, as fairseq does."""
        return torch.from_numpy(samples.labels[rows] / self.highest).float()

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the squared error."""
        return (logits[:, 0] - targets).square()

    def scores(self, logits: np.ndarray, samples: LabelledTexts) -> dict[str, Score]:
        """Returns the correlations with the labels."""
        predicted = logits[:, 0].astype(np.float64)
        return {
            name: agreement.scored(METRICS[name][0], predicted, samples.labels, METRICS[name][1])
            for name in self.metrics
        }

    def merit(self, logits: np.ndarray, samples: LabelledTexts) -> float:
        """Returns the negative mean squared error."""
        return -float(np.mean((logits[:, 0] - samples.labels / self.highest) ** 2))

    def of_own_head(self, logits: np.ndarray, names: Sequence[str], samples: Any) -> tuple[np.ndarray, Any]:
        """Returns the outputs as they are: correlations ask for no scale. Raises: UserError."""
        if len(names) != 1:
            raise UserError(f"the model's head tells {len(names)} classes, and the task wants one number")
        return logits, samples


@dataclass(frozen=True)
class Answers:
    """Each frequent answer is right to the degree of VQA's official accuracy.

    Source: Teney et al. 2018, section 3.2: a sigmoid per answer, with the losses added up.
    """

    def check(self, train: Any, held_out: Mapping[str, Any]) -> None:
        """Accepts any questions; an answer that is not frequent cannot be given and counts as wrong."""

    def meaning(self, samples: Questions) -> Meaning:
        """Returns the frequent answers."""
        return Meaning(tuple(samples.class_names), "sigmoid")

    def targets(self, samples: Questions, rows: np.ndarray) -> Tensor:
        """Returns each answer's accuracy: [k answers]."""
        places = samples.places
        found = torch.zeros(len(rows), len(samples.class_names))
        for number, row in enumerate(rows):
            for answer, value in targets(samples.answers[row]).items():
                if answer in places:
                    found[number, places[answer]] = value
        return found

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the sum of the binary cross-entropies."""
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)

    def scores(self, logits: np.ndarray, samples: Questions) -> dict[str, Score]:
        """Returns the official accuracy of the likeliest answers."""
        said = [samples.class_names[place] for place in logits.argmax(1)]
        found = [accuracy(answer, given) for answer, given in zip(said, samples.answers, strict=True)]
        return {"vqa_accuracy": share(np.array(found))}

    def merit(self, logits: np.ndarray, samples: Questions) -> float:
        """Returns the official accuracy."""
        return self.scores(logits, samples)["vqa_accuracy"].value

    def of_own_head(self, logits: np.ndarray, names: Sequence[str], samples: Any) -> tuple[np.ndarray, Any]:
        """Returns the samples with the head's answers in place of the frequent ones.

        Raises: UserError if no question has one of them as its commonest answer.
        """
        if not any(label_of(name) in samples.places for name in names):
            raise UserError(
                f"none of the {len(names)} answers of the model's head ({', '.join(names[:5])}, ...) is a "
                "frequent answer of the data set; give its answers in order with --head-classes FILE.json"
            )
        return logits, dataclasses.replace(samples, class_names=tuple(names))


def mean_of(scores: list[Score]) -> Score:
    """Returns the mean of numbers from independent samples, such as MNLI's matched and mismatched."""
    errors = [score.standard_error for score in scores if score.standard_error is not None]
    error = math.sqrt(sum(e * e for e in errors)) / len(errors) if len(errors) == len(scores) else None
    values = [score.value for score in scores]
    known = [score.interval for score in scores if score.interval is not None]
    between = mean_interval(values, known) if len(known) == len(scores) else None
    return Score(
        sum(values) / len(values), sum(score.n for score in scores), error, scores[0].unit, interval=between
    )
