"""Winoground's scores: whether a model tells two images and two captions of the same words apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flava_ds.evaluation.datasets.winoground import Contrasts
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import Seen
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM, Transform
from flava_ds.evaluation.protocols import Embedder, EvaluationData, Matcher, Score, Splits
from flava_ds.evaluation.statistics import share


@dataclass(frozen=True)
class Contrast(ABC):
    """Scores each of an example's two images against each of its two captions.

    Source: Thrush et al. 2022, "Winoground", section 3.
    """

    name: str
    data: EvaluationData
    transform: Transform = CLIP_TRANSFORM
    suite: ClassVar[str] = "pairs"
    group: ClassVar[str] = "vision-language"

    @abstractmethod
    def scores(self, model: FrozenModel, samples: Contrasts) -> np.ndarray:
        """Returns how well image i and caption j of an example fit: [examples 2 2]."""

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns the text, image and group scores; by chance they are 1/4, 1/4 and 1/6."""
        fits = self.scores(model, data.test())
        hits = {
            # Text: for each image the right caption beats the wrong one. Image: the other way round.
            "text_score": (fits[:, 0, 0] > fits[:, 0, 1]) & (fits[:, 1, 1] > fits[:, 1, 0]),
            "image_score": (fits[:, 0, 0] > fits[:, 1, 0]) & (fits[:, 1, 1] > fits[:, 0, 1]),
        }
        hits["group_score"] = hits["text_score"] & hits["image_score"]
        return {name: share(found) for name, found in hits.items()}


@dataclass(frozen=True)
class EmbeddingContrast(Contrast):
    """By the inner product of embeddings."""

    about: ClassVar[str] = "two images and two captions of the same words, by embeddings"
    needs: ClassVar[tuple[type, ...]] = (Embedder,)

    def scores(self, model: FrozenModel, samples: Contrasts) -> np.ndarray:
        """Embeds images and captions."""
        asked_by = f"task {self.name}"
        images = model.image_embeddings(Seen(samples, self.transform), asked_by).unflatten(0, (-1, 2))
        texts = model.text_embeddings([said[0] for said in samples.captions], asked_by).unflatten(0, (-1, 2))
        return (images @ texts.transpose(1, 2)).cpu().numpy()


@dataclass(frozen=True)
class MatchingContrast(Contrast):
    """By the log odds that the matching head gives."""

    about: ClassVar[str] = "two images and two captions of the same words, by the matching head"
    needs: ClassVar[tuple[type, ...]] = (Matcher,)

    def scores(self, model: FrozenModel, samples: Contrasts) -> np.ndarray:
        """Scores every image against both captions of its example."""
        ids = model.tokenizer.encode_batch([said[0] for said in samples.captions], model.most_tokens["pair"])
        pairings = [[ids[row - row % 2 + caption] for row in range(len(ids))] for caption in (0, 1)]
        found = model.log_odds(Seen(samples, self.transform), pairings, f"task {self.name}")
        return found.unflatten(0, (-1, 2)).cpu().numpy()
