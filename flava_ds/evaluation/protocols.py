"""Interfaces of an evaluation: capabilities of a model, data sets, tasks and their scores.

A family provides objects that satisfy the capability protocols (structurally: it imports nothing from here),
a data set is an EvaluationData, and a task is an Evaluator. None of the three depends on the others'
implementations, so each is one file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from flava_ds.evaluation.frozen_model import FrozenModel
    from flava_ds.evaluation.shares import Share


@runtime_checkable
class ImageFeatures(Protocol):
    """One feature vector per image, before any projection, for probes and nearest neighbours."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """Encodes images: [b c H W] uint8 -> [b d]."""


@runtime_checkable
class TextFeatures(Protocol):
    """One feature vector per text, before any projection."""

    def text_features(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Encodes b arrays of ids: -> [b d]."""


@runtime_checkable
class Embedder(ImageFeatures, TextFeatures, Protocol):
    """Image and text vectors in one space; the inner product is their similarity."""

    def project_images(self, features: Tensor) -> Tensor:
        """Projects and L2-normalises: [b d] -> [b r], fp32."""

    def project_texts(self, features: Tensor) -> Tensor:
        """Projects and L2-normalises: [b d] -> [b r], fp32."""


@runtime_checkable
class Matcher(Protocol):
    """Log odds that a text belongs to an image, given equal prior odds."""

    def log_odds(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Scores [b c H W] uint8 against, per pairing, b arrays of ids: -> one [b] fp32 per pairing."""


class Predictions(Protocol):
    """A model's predictions at some masked positions."""

    def logits(self) -> Tensor:
        """Returns scores: [k v] fp32."""

    def loss(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the summed negative log likelihood in nats and the number of correct predictions: [k]."""


class Reading(Protocol):
    """One pass over masked inputs."""

    def tokens(self, rows: Tensor) -> Predictions:
        """Predicts tokens at rows of the concatenated texts: [k]."""

    def codes(self, rows: Tensor) -> Predictions:
        """Predicts image codes at flat indices into [b n]: [k]."""


@runtime_checkable
class Scorer(Protocol):
    """Likelihoods of masked tokens and codes."""

    @property
    def predicts(self) -> frozenset[str]:
        """What it can score: 'text', 'image', 'text of a pair', 'image of a pair'."""

    def read(
        self,
        texts: Sequence[np.ndarray] | None = None,
        pixels: Tensor | None = None,
        patches: Tensor | None = None,
    ) -> Reading:
        """Encodes masked texts (b arrays of ids), images [b c H W] with masked patches [b n], or pairs."""


@runtime_checkable
class Writer(Protocol):
    """Writes texts about images token by token; no task needs it."""

    def write(self, pixels: Tensor, *, words: int) -> list[list[int]]:
        """Writes at most `words` tokens about each of [b c H W] uint8: ids without special tokens."""


class StateEncoder(Protocol):
    """A torch module with a copy of a model's weights, to be fine-tuned below a head. Only weights that the
    state depends on require a gradient."""

    width: int
    """Features of a state."""

    def __call__(self, texts: Sequence[np.ndarray], pixels: Tensor | None = None) -> Tensor:
        """Encodes b arrays of ids, for pairs with [b c H W] uint8: -> [b d], with a graph."""


class PictureStateEncoder(StateEncoder, Protocol):
    """Encodes images with a text, or by themselves; their texts are empty then."""

    image_size: int
    """Edge of the images it takes, in pixels."""


@runtime_checkable
class TextStates(Protocol):
    """One state per text, with trainable weights."""

    def text_states(self) -> StateEncoder:
        """Returns a copy of the encoder of texts; the model stays unchanged."""


@runtime_checkable
class ImageStates(Protocol):
    """One state per image, with trainable weights."""

    def image_states(self, scale: float = 1.0) -> PictureStateEncoder:
        """Returns a copy of the encoder of images, for images `scale` times as large as in pre-training; the
        model stays unchanged."""


@runtime_checkable
class PairStates(Protocol):
    """One state per image and text, with trainable weights."""

    def pair_states(self, scale: float = 1.0) -> PictureStateEncoder:
        """Returns a copy of the encoders of pairs, for images `scale` times as large as in pre-training; the
        model stays unchanged."""


@runtime_checkable
class ObjectFinder(Protocol):
    """Boxes of the objects in an image, and what they are."""

    @property
    def num_classes(self) -> int:
        """Classes of objects."""

    def find_objects(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Finds objects in [b c H W] uint8: boxes x1 y1 x2 y2 as shares of the edges, [b Q 4], and their
        probabilities of each class, [b Q z]; both fp32."""


@runtime_checkable
class OwnHead(Protocol):
    """A head that was fine-tuned elsewhere, on the states that the model gives to be fine-tuned."""

    @property
    def layers(self) -> nn.Module:
        """The head: [b d] -> [b z]."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What its outputs are called."""

    @property
    def made_for(self) -> str:
        """The class of transformers that it is of; empty if that is not known."""


@dataclass(frozen=True)
class LossSums:
    """An objective on one batch over all ranks: the sum of its loss in nats, its terms, and how many of them
    were predicted correctly, for those that predict.
    """

    loss: float
    terms: int
    correct: float | None = None


@runtime_checkable
class Losses(Protocol):
    """The losses that the model was trained with, on any shards."""

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of step that have a loss to measure."""

    def sums(self, kind: str, shards: Path, most: int, share: Share) -> Iterator[Mapping[str, LossSums]]:
        """Yields each objective's sums per batch, of the first `most` samples; all ranks iterate together."""


CAPABILITIES: dict[type, str] = {
    ImageFeatures: "one vector per image",
    TextFeatures: "one vector per text",
    Embedder: "image and text vectors in one space",
    Matcher: "log odds of image-text pairs",
    Scorer: "likelihoods of masked tokens or codes",
    TextStates: "text states that can be fine-tuned",
    ImageStates: "image states that can be fine-tuned",
    PairStates: "states of image-text pairs that can be fine-tuned",
    Losses: "the losses of its training",
}
"""Every capability that a task may need of any family, described."""
SPECIAL: dict[type, str] = {ObjectFinder: "boxes of objects"}
"""Those that only families with such a task can have."""
OF_FILES: dict[type, str] = {OwnHead: "a head that was fine-tuned elsewhere"}
"""Those that a model's files may bring, whatever its family."""
OF_PICTURES: frozenset[type] = frozenset({ImageFeatures, ImageStates, ObjectFinder})
"""Those that read no texts, for which a model needs no vocabulary."""

Unit = Literal["share", "nats", "correlation", "number"]
"""Of a score: a share is shown in per cent, all others as they are; "number" stands for any other unit."""


@dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    `n` is the number of samples. The standard error estimates the effect of drawing the test samples again;
    it covers neither seeds nor dependence between samples.
    """

    value: float
    n: int
    standard_error: float | None
    """None if the samples do not tell it: there are too few, or all are right, or all wrong."""
    unit: Unit = "share"
    higher_is_better: bool = True
    """Which checkpoints `checkpoint.best_metric` keeps."""
    interval: tuple[float, float] | None = None
    """Of 95 %, by 1000 bootstrap resamples of the test samples; Wilson's for means over classes, and for
    samples that are all alike. None where there is none, or all resamples give the same.
    """

    def __str__(self) -> str:
        """Formats the value for display, with its standard error."""
        error = "" if self.standard_error is None else f" ± {self.written(self.standard_error).split()[0]}"
        return self.written(self.value) + error

    def written(self, value: float) -> str:
        """Formats a value in the score's unit: a share in per cent."""
        return f"{100 * value:.2f} %" if self.unit == "share" else f"{value:.4f}"


class EvaluationData(Protocol):
    """A named data set in its published layout. An instance describes it; only `read` reads."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> str:
        """Name of its folder below the root of all data sets."""

    @property
    def licence(self) -> str: ...
    @property
    def origin(self) -> str:
        """Where it comes from, and what must be downloaded by hand."""

    @property
    def layout(self) -> str:
        """What its folder must contain, in a line or two."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Results are reported on the first split that exists, except 'train'."""

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Returns True if `folder` has this data set's layout (and `split`, if given); reads no samples."""

    def read(self, folder: Path, split: str) -> Any:
        """Returns the split's labelled samples: one of the classes in flava_ds/evaluation/labelled.py.

        Raises: DataError naming the file that is missing or has another layout.
        """


class Evaluator(Protocol):
    """One task: a method on a data set.

    `run` returns the same numbers for the same weights and data.
    """

    @property
    def name(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def needs(self) -> tuple[type, ...]:
        """The CAPABILITIES that it needs of a model."""

    @property
    def data(self) -> EvaluationData: ...

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns the task's named numbers. Raises: DataError, Lacking."""


@runtime_checkable
class Trained(Protocol):
    """A task that trains weights."""

    def settings(self, data: Splits) -> dict[str, Any]:
        """Returns the hyper-parameters that it trained with on `data`; they become part of the result."""

    def reported(self, data: Splits) -> tuple[str, ...]:
        """Returns the splits whose samples its numbers are of."""


class Splits(Protocol):
    """A data set found in its folder, as a task uses it."""

    @property
    def split(self) -> str:
        """The split to report on."""

    @property
    def limit(self) -> int | None:
        """How many samples of each split are taken at most."""

    def test(self) -> Any:
        """Returns the samples to report on."""

    def read(self, split: str) -> Any:
        """Returns a split's samples by name, read once for all tasks."""

    def has(self, split: str) -> bool:
        """Returns True if the folder contains that split."""


Progress = Callable[[str], None]
