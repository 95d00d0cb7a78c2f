"""Zero-shot classification: image embeddings against embedded prompts with the class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from flava_ds.errors import DataError
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import LabelledImages, Seen
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM, Transform
from flava_ds.evaluation.protocols import Embedder, EvaluationData, Score, Splits
from flava_ds.evaluation.statistics import hits_at, mean_per_class, share


@dataclass(frozen=True)
class ZeroShot:
    """Predicts an image's class without labelled examples.

    Source: CLIP: prompts are embedded, averaged over templates and renormalised; the largest inner product
    wins.
    """

    name: str
    data: EvaluationData
    transform: Transform = CLIP_TRANSFORM
    about: ClassVar[str] = "zero-shot classification by prompts"
    suite: ClassVar[str] = "vision"
    group: ClassVar[str] = "zero-shot"
    needs: ClassVar[tuple[type, ...]] = (Embedder,)

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns top-1 accuracy, top-5 with more than five classes, and the mean over classes.

        Raises: DataError naming a class without a name.
        """
        samples: LabelledImages = data.test()
        if samples.unnamed:
            raise DataError(samples.unnamed)
        asked_by = f"task {self.name}"
        images = model.image_embeddings(Seen(samples, self.transform), asked_by)
        classes = classifier(model, samples.class_names, samples.templates, asked_by)
        ks = (1, 5) if len(samples.class_names) > 5 else (1,)
        hits = hits_at(images, classes, [np.array([label]) for label in samples.labels], ks)
        scores = {f"top{k}_accuracy": share(hits[:, column]) for column, k in enumerate(ks)}
        return scores | {"mean_per_class_accuracy": mean_per_class(hits[:, 0], samples.labels)}


def classifier(model: FrozenModel, names: Sequence[str], templates: Sequence[str], asked_by: str) -> Tensor:
    """Embeds each name in every template, averages and renormalises: [len(names) r]."""
    embedded = model.text_embeddings(
        [template.replace("{}", name) for name in names for template in templates], asked_by
    )
    return F.normalize(embedded.unflatten(0, (len(names), len(templates))).mean(dim=1), dim=-1)
