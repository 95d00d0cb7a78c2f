"""Scores a model on one fixed gallery: contrastive loss in nats among 512 pairs that no run trains on.

The training loss cannot be compared between batches: at chance it is the log of the batch. Here every model
sorts the same pairs, at the temperature that suits it best, so that a scale that is still warming up costs
nothing. benchmarks/study.yaml names this file under evaluation.tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import CaptionedImages, Seen
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM
from flava_ds.evaluation.protocols import Embedder, EvaluationData, Score, Splits
from flava_ds.evaluation.samples import read_samples

SHARD = "00008.tar"
SCALES = np.geomspace(0.5, 100, 120)
"""Inverse temperatures that are tried."""


@dataclass(frozen=True)
class HeldOutShard:
    """The demo's shard of training pairs that the study leaves out of training."""

    name: str = "study_shard"
    folder: str = "pairs-train"
    licence: str = "the demo's, see flava_ds/demo/ATTRIBUTION.md"
    origin: str = "the built-in data; `flava-ds train demo` unpacks it"
    layout: str = f"{SHARD}"
    splits: tuple[str, ...] = ("test",)

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for the shard."""
        return split in (None, "test") and (folder / SHARD).is_file()

    def read(self, folder: Path, split: str) -> CaptionedImages:
        """Reads its pictures and captions."""
        samples = read_samples(folder / SHARD)
        captions = tuple((caption,) for caption in samples.captions)
        return CaptionedImages(self.name, samples.keys, samples.encoded_images.__getitem__, captions)


@dataclass(frozen=True)
class Gallery:
    """Cross-entropy of finding an image's caption and a caption's image among all of the gallery."""

    name: str = "study_gallery"
    data: EvaluationData = HeldOutShard()
    about: ClassVar[str] = "contrastive loss on a fixed gallery"
    suite: ClassVar[str] = "pairs"
    needs: ClassVar[tuple[type, ...]] = (Embedder,)

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns the loss, the mean of both directions."""
        samples: CaptionedImages = data.test()
        asked_by = f"task {self.name}"
        images = model.image_embeddings(Seen(samples, CLIP_TRANSFORM), asked_by)
        texts = model.text_embeddings([said[0] for said in samples.captions], asked_by)
        losses = gallery_losses(images @ texts.T)
        error = float(losses.std() / len(losses) ** 0.5)
        return {"contrastive_nats": Score(float(losses.mean()), len(losses), error, "nats", False)}


def gallery_losses(similarities: torch.Tensor) -> torch.Tensor:
    """Returns each pair's loss at the best of SCALES: [n n], pairs on the diagonal -> [n]."""
    labels = torch.arange(len(similarities), device=similarities.device)
    found = []
    for scale in SCALES:
        own = [
            F.cross_entropy(scale * each, labels, reduction="none") for each in (similarities, similarities.T)
        ]
        found.append((own[0] + own[1]) / 2)
    return min(found, key=lambda losses: float(losses.mean()))


TASKS = (Gallery(),)
