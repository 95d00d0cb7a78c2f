"""Zero-shot retrieval of captions by images and of images by captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import CaptionedImages, Seen
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM, Transform
from flava_ds.evaluation.protocols import Embedder, EvaluationData, Matcher, Score, Splits
from flava_ds.evaluation.statistics import hits_at, share

KS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """Recall at 1, 5 and 10 by the inner product of embeddings; any of an image's captions counts.

    Ties are broken by chance, in expectation. Source: paper, section 4, on Karpathy's splits.
    """

    name: str
    data: EvaluationData
    transform: Transform = CLIP_TRANSFORM
    about: ClassVar[str] = "zero-shot retrieval of captions and images"
    suite: ClassVar[str] = "pairs"
    group: ClassVar[str] = "retrieval"
    needs: ClassVar[tuple[type, ...]] = (Embedder,)

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns the recalls of both directions."""
        samples: CaptionedImages = data.test()
        captions = self.captions(samples)
        images, texts = self.vectors(model, samples, [caption for said in captions for caption in said])
        image_of = np.repeat(np.arange(len(captions)), [len(said) for said in captions])
        captions_of = np.split(np.arange(len(texts)), np.cumsum([len(said) for said in captions])[:-1])
        directions = {
            "image_to_text": hits_at(images, texts, captions_of, KS),
            "text_to_image": hits_at(texts, images, [np.array([image]) for image in image_of], KS),
        }
        groups = {"image_to_text": None, "text_to_image": image_of}
        return {
            f"{direction}_recall_at_{k}": share(hits[:, column], groups[direction])
            for direction, hits in directions.items()
            for column, k in enumerate(KS)
        }

    def captions(self, samples: CaptionedImages) -> Sequence[Sequence[str]]:
        """Returns the captions of each image that takes part."""
        return samples.captions

    def vectors(
        self, model: FrozenModel, samples: CaptionedImages, captions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Returns vectors of images and captions whose inner product says how well they fit."""
        asked_by = f"task {self.name}"
        images = model.image_embeddings(Seen(samples, self.transform), asked_by)
        return images, model.text_embeddings(captions, asked_by)


@dataclass(frozen=True)
class MatchingRetrieval(Retrieval):
    """The same by the log odds of the matching head, over the first images of a split with one caption each.

    Every image is read with every caption, so the number of images is bounded; recalls of other numbers of
    images do not compare.
    """

    most: int = 256
    about: ClassVar[str] = "retrieval among 256 images and captions, by the matching head"
    needs: ClassVar[tuple[type, ...]] = (Matcher,)

    def captions(self, samples: CaptionedImages) -> Sequence[Sequence[str]]:
        """Returns one caption of each of the first images."""
        return [said[:1] for said in samples.captions[: self.most]]

    def vectors(
        self, model: FrozenModel, samples: CaptionedImages, captions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Returns log odds, and the captions as unit vectors: [m m] each."""
        ids = model.tokenizer.encode_batch(captions, model.most_tokens["pair"])
        pictures = Seen(samples.select(np.arange(len(captions))), self.transform)
        odds = model.log_odds(pictures, [[text] * len(captions) for text in ids], f"task {self.name}")
        return odds, torch.eye(len(captions), device=model.device)
