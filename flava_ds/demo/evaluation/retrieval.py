"""Zero-shot retrieval of captions by images and of images by captions."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from flava_ds.demo.evaluation.base import CHANCE
from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.nearest import chance_of_recall, recall, top_k

ASKED_BY = "the demo's retrieval"


def measure(model: FrozenModel, inputs: Inputs) -> dict[str, float]:
    """Returns recall at 1 and 5 on the held-out pairs in both directions, one caption per image, and that of
    a random order.

    An image or caption of the same concept is correct, since captions of one concept differ in little but
    their template.

    Source: paper, section 4 (COCO and Flickr30k, recall at k of the contrastive embeddings).
    """
    metrics: dict[str, float] = {}
    for set_name, samples in (
        ("unseen_style", inputs.unseen_style),
        ("unseen_concepts", inputs.unseen_concepts),
    ):
        images = model.image_embeddings(samples, ASKED_BY)
        texts = model.text_embeddings(samples.captions, ASKED_BY)
        for direction, queries, keys in (("text_to_image", texts, images), ("image_to_text", images, texts)):
            what = f"retrieval/{set_name}/{direction}_recall_at_"
            metrics |= recalls(what, queries, keys, samples.column("concept"))
    return metrics


def recalls(what: str, queries: Tensor, keys: Tensor, concepts: np.ndarray) -> dict[str, float]:
    """Returns how often a key of the query's concept is among the first 1 and 5, and chance, under `what`.

    Shapes:
        queries, keys  [N r]
        concepts       [N]  of query and key alike
    """
    _, inverse, counts = np.unique(concepts, return_inverse=True, return_counts=True)
    found, metrics = concepts[top_k(queries, keys, 5).cpu().numpy()], {}
    for k in (1, 5):
        metrics[f"{what}{k}"] = recall(found, concepts, k)
        metrics[f"{what}{k}{CHANCE}"] = chance_of_recall(counts[inverse], len(concepts), k)
    return metrics
