"""What a run reaches on the demo's data: drawings and glosses that training never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from flava_ds.campaigns.fine_tuned import (
    ASKED_BY,
    DRAWS,
    categories_of,
    category_draws,
    training_pairs,
    tuned,
    tuned_on_draws,
    tuned_pairs,
)
from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.demo.evaluation.linear_probe import hits
from flava_ds.demo.evaluation.matching import draw_mismatches
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import LabelledPairs
from flava_ds.evaluation.protocols import PairStates
from flava_ds.evaluation.samples import Samples
from flava_ds.evaluation.statistics import around_best
from flava_ds.evaluation.tasks.scenes import PIXELS, QUESTIONS, STATEMENTS
from flava_ds.evaluation.tasks.scenes import RECIPE as SCENES
from flava_ds.evaluation.tuning.heads import PairHead

FITS = ("another concept", "same subgroup", "this concept")
"""Classes of the multimodal task: how a label fits a drawing."""
MAJORITY = "/majority"
"""Suffix of a number's reference: always the most frequent class."""
Hits = dict[str, tuple[str, np.ndarray, np.ndarray]]
"""Number -> what its clusters are called, each item's cluster [N], each item's value [N]."""
Measure = Callable[[FrozenModel, Inputs], Hits]


def vision(model: FrozenModel, inputs: Inputs) -> Hits:
    """Classifies drawings in unseen styles by linear probes."""
    samples = inputs.unseen_style
    return {
        f"vision/{field}": ("concepts", samples.column("concept"), hits(model, inputs, field, [samples])[0])
        for field in ("group", "subgroup")
    }


def language(model: FrozenModel, inputs: Inputs) -> Hits:
    """Fine-tunes the text encoder to tell a gloss's category, on several draws of training glosses."""
    draws = category_draws(inputs)
    hits = tuned_on_draws(model, draws, categories_of(inputs.texts, draws[0].class_names))
    # All draws see the same test glosses, so each counts once, with the share of draws that get it right.
    return {"language/category": ("words", np.tile(inputs.texts.column("word"), DRAWS), hits)}


def retrieval(model: FrozenModel, inputs: Inputs) -> Hits:
    """Finds captions and drawings by each other."""
    samples = inputs.unseen_style
    concepts = samples.column("concept")
    images = model.image_embeddings(samples, ASKED_BY)
    texts = model.text_embeddings(samples.captions, ASKED_BY)
    return {
        f"multimodal/{name}_reciprocal_rank": ("concepts", concepts, reciprocal_ranks(*sides, concepts))
        for name, sides in {"caption_to_image": (texts, images), "image_to_caption": (images, texts)}.items()
    }


def fit(model: FrozenModel, inputs: Inputs) -> Hits:
    """Tells how a label fits a drawing, all encoders fine-tuned."""
    samples = inputs.unseen_style
    parts = (labels_that_fit(training_pairs(inputs), inputs.labels), labels_that_fit(samples, inputs.labels))
    return {"multimodal/fit": ("concepts", samples.column("concept"), tuned_pairs("fit", model, parts))}


def scenes(model: FrozenModel, inputs: Inputs) -> Hits:
    """Answers questions on scenes and judges statements on them, all encoders fine-tuned; beside each, what
    the most frequent class of each kind of text scores.
    """
    encoder = model.need(PairStates, ASKED_BY).pair_states
    found: Hits = {}
    for data in (QUESTIONS, STATEMENTS):
        train, test = (data.read(inputs.root, split) for split in ("train", "unseen_style"))
        hits = tuned(
            data.name, model, partial(encoder, PIXELS / model.image_size), PairHead, SCENES, (train, test)
        )
        for name, values in ((data.name, hits), (f"{data.name}{MAJORITY}", test.are_majority)):
            found[f"multimodal/{name}"] = ("scenes", np.array(test.keys), values)
    return found


def multimodal(model: FrozenModel, inputs: Inputs) -> Hits:
    """Both of these."""
    return retrieval(model, inputs) | fit(model, inputs)


MEASURES: dict[str, Measure] = {
    "vision": vision,
    "language": language,
    "multimodal": multimodal,
    "retrieval": retrieval,
    "fit": fit,
    "scenes": scenes,
}

RETRIEVAL = ("multimodal/caption_to_image_reciprocal_rank", "multimodal/image_to_caption_reciprocal_rank")
SCENE_SETS = (QUESTIONS.name, STATEMENTS.name)
NUMBERS: dict[str, tuple[str, ...]] = {
    "vision": ("vision/group", "vision/subgroup"),
    "language": ("language/category",),
    "multimodal": (*RETRIEVAL, "multimodal/fit"),
    "retrieval": RETRIEVAL,
    "fit": ("multimodal/fit",),
    "scenes": tuple(f"multimodal/{name}{of}" for name in SCENE_SETS for of in ("", MAJORITY)),
}
"""Measure -> its numbers; a result that lacks one of them is damaged."""


def reciprocal_ranks(queries: Tensor, keys: Tensor, labels: np.ndarray) -> np.ndarray:
    """Returns one over the rank of the first key of a query's label; of keys as near as it, half come first.

    Shapes:
        queries, keys  [N r]
        labels         [N]
        returns        [N]  float64
    """
    number = torch.from_numpy(np.unique(labels, return_inverse=True)[1]).to(queries.device)
    found = []
    for rows in torch.arange(len(queries), device=queries.device).split(512):
        scores = queries[rows] @ keys.T
        right = number[rows][:, None] == number
        above, _, ties = around_best(scores, right)
        found.append(1 / (1 + above.double() + ties.double() / 2))
    return torch.cat(found).cpu().numpy()


def labels_that_fit(samples: Samples, labels: Mapping[str, str]) -> LabelledPairs:
    """Gives every drawing a label: its own, one of its subgroup or any other, in turn by sample."""
    concepts, subgroups = samples.column("concept"), samples.column("subgroup")
    near = draw_mismatches(concepts, np.unique(subgroups, return_inverse=True)[1])
    far = draw_mismatches(concepts, np.zeros(len(concepts), dtype=np.int64))
    turn = np.arange(len(samples)) % len(FITS)
    turn[(turn == 1) & (near < 0)] = 0  # alone in its subgroup
    partner = np.choose(turn, [far, near, np.arange(len(samples))])
    texts = tuple(labels[concept] for concept in concepts[partner])
    return LabelledPairs(
        samples.name,
        samples.keys,
        lambda row: samples.encoded_images[row],
        texts,
        turn.astype(np.int64),
        FITS,
    )
