"""Zero-shot retrieval of captions by images and of images by captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import CaptionedImages, Seen
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM, Transform
from flava_ds.evaluation.protocols import Embedder, EvaluationData, Score, Splits
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
        asked_by = f"task {self.name}"
        images = model.image_embeddings(Seen(samples, self.transform), asked_by)
        texts = model.text_embeddings([caption for said in samples.captions for caption in said], asked_by)
        image_of = np.repeat(np.arange(len(samples)), [len(said) for said in samples.captions])
        captions_of = np.split(
            np.arange(len(texts)), np.cumsum([len(said) for said in samples.captions])[:-1]
        )
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
