"""Captions written about held-out pictures, judged by whether the model finds the picture again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flava_ds.demo.evaluation.base import CHANCE
from flava_ds.demo.evaluation.drawing import MOST_SAMPLES
from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.demo.evaluation.retrieval import recalls
from flava_ds.evaluation.frozen_model import FrozenModel, Lacking
from flava_ds.evaluation.labelled import spaced
from flava_ds.evaluation.protocols import Scorer
from flava_ds.evaluation.samples import Samples
from flava_ds.generation import write_best

WRITES = "text of a pair"
"""What a Scorer must predict to write."""
WORDS, TURNS = (3, 4, 5, 6, 8), 8
"""Tokens of the texts that are tried for each picture, and the turns in which they are filled."""
ASKED_BY = "the demo's writing"


def measure(model: FrozenModel, inputs: Inputs) -> dict[str, float]:
    """Returns recall at 1 and 5 of the picture, among all of them, by the caption written about it, and the
    share of captions that name the picture's concept.

    Beside it the same for the true caption, which is the most that can be asked for. The judge of the recall
    is the model itself.
    """
    if WRITES not in model.need(Scorer, ASKED_BY).predicts:
        raise Lacking("the run does not train masked words beside a picture")
    every = inputs.unseen_style
    samples = every.select(spaced(len(every), MOST_SAMPLES), "pictures to write about")
    images, concepts = model.image_embeddings(samples, ASKED_BY), samples.column("concept")
    labels = [inputs.labels[concept] for concept in concepts]
    sets = {"written": write_captions(model, samples), "caption": samples.captions}
    metrics: dict[str, float] = {}
    for name, texts in sets.items():
        embedded = model.text_embeddings(texts, ASKED_BY)
        metrics |= recalls(f"writing/{name}/text_to_image_recall_at_", embedded, images, concepts)
        named = names(texts, labels)
        metrics[f"writing/{name}/names_the_concept"] = float(named.diagonal().mean())
        metrics[f"writing/{name}/names_the_concept{CHANCE}"] = float(named.mean())
    return metrics


def names(texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Returns whether each text has all words of each label, side by side: [N] each -> [N N] bool."""
    padded = [f" {' '.join(text.lower().split())} " for text in texts]
    wanted = [f" {' '.join(label.lower().split())} " for label in labels]
    return np.array([[label in text for label in wanted] for text in padded])


@torch.inference_mode()
def write_captions(model: FrozenModel, samples: Samples) -> list[str]:
    """Writes a caption about each sample's picture."""
    scorer, most = model.need(Scorer, "writing"), model.most_tokens["pair"] - 2
    pixels = samples.pixels(model.image_size)
    words = [count for count in WORDS if count <= most] or [most]
    ids = write_best(scorer, model.tokenizer, pixels, words=words, turns=TURNS)
    return [model.tokenizer.decode(own) for own in ids]
