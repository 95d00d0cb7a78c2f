"""Zero-shot concept classification: image embeddings against embedded prompts with the labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flava_ds.demo.evaluation.base import CHANCE
from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.nearest import recall, top_k
from flava_ds.evaluation.zero_shot import classifier

TEMPLATES = ("{}", "a drawing of {}", "a picture of {}", "an emoji of {}", "a black and white icon of {}")
"""The same for every style: the classifier does not know the style."""
ASKED_BY = "the demo's zero_shot"


def measure(model: FrozenModel, inputs: Inputs) -> dict[str, float]:
    """Predicts the concept of images in unseen styles, and of unseen concepts; returns top-1 and top-5
    accuracy of every held-out set, and chance.

    Source: paper, section 4 (prompts as in CLIP: averaged over templates, renormalised).
    """
    labels = inputs.labels
    everything = sorted(labels)
    concepts = classifier(model, [labels[concept] for concept in everything], TEMPLATES, ASKED_BY)
    metrics: dict[str, float] = {}
    for set_name, samples in inputs.held_out_sets().items():
        embeddings, right = model.image_embeddings(samples, ASKED_BY), samples.column("concept")
        present = np.isin(everything, np.unique(right))
        rows = torch.from_numpy(np.flatnonzero(present)).to(concepts.device)
        metrics |= classify(
            f"zero_shot/{set_name}/", embeddings, right, concepts[rows], np.array(everything)[present]
        )
        metrics |= classify(
            f"zero_shot/{set_name}/all_concepts_", embeddings, right, concepts, np.array(everything)
        )
    return metrics


def classify(
    prefix: str, images: Tensor, right: np.ndarray, prompts: Tensor, concepts: np.ndarray
) -> dict[str, float]:
    """Returns top-1 and top-5 accuracy among these concepts, and chance; names start with `prefix`.

    Shapes:
        images      [N r]
        right       [N]    concept names
        prompts     [C r]
        concepts    [C]    concept names
    """
    found = concepts[top_k(images, prompts, 5).cpu().numpy()]
    metrics = {}
    for k in (1, 5):
        metrics[f"{prefix}top{k}_accuracy"] = recall(found, right, k)
        metrics[f"{prefix}top{k}_accuracy{CHANCE}"] = min(k, len(concepts)) / len(concepts)
    return metrics
