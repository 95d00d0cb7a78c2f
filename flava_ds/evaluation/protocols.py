"""What an evaluation is made of: what it may ask of a model, the data it reads, the numbers it returns.

A family offers objects that satisfy the first group (structurally: it imports nothing from here), a data set
is an EvaluationData, a task is an Evaluator. None of the three knows of the others' implementations, so each
is one file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from flava_ds.evaluation.frozen_model import FrozenModel


@runtime_checkable
class ImageFeatures(Protocol):
    """One state per image, before any projection: what probes and nearest neighbours read."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """[b c H W] uint8 -> [b d]."""


@runtime_checkable
class TextFeatures(Protocol):
    """One state per text, before any projection."""

    def text_features(self, texts: Sequence[np.ndarray]) -> Tensor:
        """b arrays of ids -> [b d]."""


@runtime_checkable
class Embedder(ImageFeatures, TextFeatures, Protocol):
    """Image and text vectors in one space; the inner product of two says how well they fit."""

    def project_images(self, features: Tensor) -> Tensor:
        """[b d] -> [b r], L2-normalised, fp32."""

    def project_texts(self, features: Tensor) -> Tensor:
        """[b d] -> [b r], L2-normalised, fp32."""


@runtime_checkable
class Matcher(Protocol):
    """Log odds that a text belongs to an image, zero where both answers are equally likely."""

    def log_odds(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """[b c H W] uint8 and, for each pairing, b arrays of ids -> one [b] fp32 for each pairing."""


class Predictions(Protocol):
    """What a model says about some masked places."""

    def logits(self) -> Tensor:
        """[k v] fp32."""

    def loss(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed negative log likelihood in nats, and the number of right predictions: [k] -> two scalars."""


class Reading(Protocol):
    """One pass over masked inputs."""

    def tokens(self, rows: Tensor) -> Predictions:
        """Predicts tokens at rows of the texts laid end to end: [k]."""

    def codes(self, rows: Tensor) -> Predictions:
        """Predicts image codes at flat indices into [b n]: [k]."""


@runtime_checkable
class Scorer(Protocol):
    """Likelihoods of masked tokens and codes."""

    @property
    def predicts(self) -> frozenset[str]:
        """Which of 'text', 'image', 'text of a pair' and 'image of a pair' it can score."""

    def read(
        self,
        texts: Sequence[np.ndarray] | None = None,
        pixels: Tensor | None = None,
        patches: Tensor | None = None,
    ) -> Reading:
        """Encodes masked texts (b arrays of ids), images [b c H W] with masked patches [b n], or both as
        pairs."""


@runtime_checkable
class Tokens(Protocol):
    """Every state of a sequence."""

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """[b c H W] uint8 -> [b*(1+n) d]."""

    def text_tokens(self, texts: Sequence[np.ndarray]) -> Tensor:
        """b arrays of ids -> [T d]."""

    def pair_tokens(self, pixels: Tensor, texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """[b c H W] uint8 and b arrays of ids -> [S d], and where each pair's sequence starts: [b+1]."""


CAPABILITIES: dict[type, str] = {
    ImageFeatures: "one state per image",
    TextFeatures: "one state per text",
    Embedder: "image and text vectors in one space",
    Matcher: "log odds of image-text pairs",
    Scorer: "likelihoods of masked tokens or codes",
    Tokens: "states of every token",
}
"""Every capability that a task may need, in words."""


@dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    `n` counts the samples behind it. The standard error is that of drawing the test samples anew; it knows
    nothing of seeds, and of samples that depend on each other as little.
    """

    value: float
    n: int
    standard_error: float | None
    """None where there are too few samples to tell."""
    unit: Literal["share", "nats", "correlation"] = "share"
    higher_is_better: bool = True

    def __str__(self) -> str:
        """The value for people."""
        scale, digits, sign = (100, 2, " %") if self.unit == "share" else (1, 4, "")
        error = "" if self.standard_error is None else f" ± {scale * self.standard_error:.{digits}f}"
        return f"{scale * self.value:.{digits}f}{sign}{error}"


class EvaluationData(Protocol):
    """A named data set in its published layout. One instance describes it; nothing is read before `read`."""

    name: str
    folder: str
    """What its folder is called under the root of all data sets."""
    licence: str
    origin: str
    """Where it comes from, and what has to be downloaded by hand."""
    layout: str
    """What its folder has to hold, in a line or a few."""
    splits: tuple[str, ...]
    """Results are reported on the first one that the folder holds, but for 'train'."""

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Tells whether `folder` is laid out as this data set is, and holds `split` if one is named; reads no
        samples."""

    def read(self, folder: Path, split: str) -> Any:
        """Returns the split's labelled samples: LabelledImages, CaptionedImages or LabelledTexts.

        Raises: DataError naming the file that is absent or of another layout.
        """


class Evaluator(Protocol):
    """One task: a method on a data set. `run` returns the same numbers for the same weights and the same
    data."""

    name: str
    about: str
    needs: tuple[type, ...]
    """What of CAPABILITIES it asks of a model."""
    data: EvaluationData

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns the task's named numbers. Raises: DataError, Lacking."""


class Splits(Protocol):
    """A data set that was found in its folder, as a task sees it."""

    split: str
    """The split to report on."""

    def test(self) -> Any:
        """Returns the samples to report on."""

    def read(self, split: str) -> Any:
        """Returns the samples of a split by name, once for all tasks."""

    def has(self, split: str) -> bool:
        """Tells whether the folder holds that split."""


Progress = Callable[[str], None]
