"""More of what a run reaches: other pictures and texts than those of training, more glosses, and questions.

The sets are those of `flava-ds prepare fetch`, which are fetched when a run needs them.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flava_ds.campaigns.fine_tuned import (
    ASKED_BY,
    DRAWS,
    PAIRS,
    TEXTS,
    category_draws,
    training_pairs,
    tuned_on_draws,
    tuned_pairs,
    tuned_texts,
)
from flava_ds.campaigns.measures import Hits, Measure
from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.demo.evaluation.linear_probe import standardised
from flava_ds.demo.evaluation.matching import draw_mismatches
from flava_ds.errors import DataError, UserError
from flava_ds.evaluation.datasets.own_text import OwnText
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import LabelledImages, LabelledPairs, LabelledTexts, Seen, limited, spaced
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM
from flava_ds.evaluation.protocols import EvaluationData
from flava_ds.evaluation.samples import Samples
from flava_ds.evaluation.tasks.fetched_images import SETS as IMAGES
from flava_ds.evaluation.tasks.fetched_texts import SETS as TEXT_SETS
from flava_ds.prepare.fetchable import SETS
from flava_ds.prepare.wordnet import word_of

ROOT = Path("runs/fetched")
ANIMALS, STAMPS = IMAGES["animal_silhouettes"], IMAGES["tuxpaint_stamps"]
GLOSSES, REVIEWS = TEXT_SETS["wordnet_glosses"], TEXT_SETS["product_reviews"]
READ: dict[str, tuple[EvaluationData, ...]] = {
    "other_pictures": (ANIMALS, STAMPS),
    "glosses": (GLOSSES,),
    "reviews": (REVIEWS,),
    "category_question": (),
}
"""Measure -> the sets that it reads."""
MOST_ANIMALS, MOST_GLOSSES = 4000, 10_000
"""Silhouettes to learn from, and glosses to test on."""
GROUPS = 2000
"""Clusters of the words of glosses, by a hash: nearly every word has one gloss, so words of their own would
make results five times as large, with the same errors."""
FOLDS = 5
"""Small sets are tested whole, each fifth by a probe or an encoder that learned from the others."""
ANSWERS = ("no", "yes")


def protocol_of(name: str) -> dict[str, object]:
    """Returns what the settings of a result with this measure are hashed from besides."""
    return {
        "sets": {own.name: SETS[own.name].sha256 for own in READ[name]},
        "most": [MOST_ANIMALS, MOST_GLOSSES, GROUPS, FOLDS],
        "recipes": [asdict(TEXTS), asdict(PAIRS), DRAWS],
    }


def provide(measures: tuple[str, ...]) -> None:
    """Fetches the sets of some measures that are not there. Raises: UserError; DataError."""
    from flava_ds.prepare.fetch import fetch_set

    for own in (own for name in measures for own in READ.get(name, ())):
        wanted = SETS[own.name]
        if not (ROOT / own.name).is_dir():
            print(f"{own.name}: {wanted.title}, fetched to {ROOT}", flush=True)
        try:
            fetch_set(wanted, ROOT)
        except UserError as error:
            command = f"flava-ds prepare fetch {own.name} --data {ROOT} --from FILE"
            raise UserError(f"{error}: {command}") from error


def other_pictures(model: FrozenModel, inputs: Inputs) -> Hits:
    """Classifies silhouettes of animals and stamps by linear probes."""
    train, test = (ANIMALS.read(ROOT / ANIMALS.name, split) for split in ("train", "test"))
    train = limited(train, MOST_ANIMALS)
    animals = _probed(_features(model, train), train.labels, _features(model, test)) == test.labels
    parts = [STAMPS.read(ROOT / STAMPS.name, split) for split in ("train", "test")]
    stamps = torch.cat([_features(model, part) for part in parts])
    labels, hits = np.concatenate([part.labels for part in parts]), np.zeros(len(stamps), dtype=bool)
    for fold in folds_of(labels):
        hits[fold] = _probed(stamps[~fold], labels[~fold], stamps[fold]) == labels[fold]
    keys = np.array([f"{number} {key}" for number, part in enumerate(parts) for key in part.keys])
    return {
        "vision/animals": ("silhouettes", np.array(test.keys), animals),
        "vision/stamps": ("stamps", keys, hits),
    }


def glosses(model: FrozenModel, inputs: Inputs) -> Hits:
    """Tells the category of glosses of words that training never saw: the text encoder fine-tuned, and frozen
    under a linear probe.
    """
    draws = category_draws(inputs)
    found = _every(GLOSSES)
    unseen = np.flatnonzero(_unseen(inputs, found.texts))
    test = found.select(unseen[spaced(len(unseen), MOST_GLOSSES)])
    if test.class_names != draws[0].class_names:
        raise DataError(f"{ROOT / GLOSSES.name}: has other categories than the glosses of training")
    learned = tuple(text for draw in draws for text in draw.texts)
    frozen = [model.text_features(texts, ASKED_BY) for texts in (learned, test.texts)]
    right = _probed(frozen[0], np.concatenate([draw.labels for draw in draws]), frozen[1]) == test.labels
    words = np.array([zlib.crc32(word_of(text).encode()) % GROUPS for text in test.texts])
    tuned = tuned_on_draws(model, draws, test)
    return {
        "language/category": ("groups of words", np.tile(words, DRAWS), tuned),
        "language/frozen_category": ("groups of words", np.tile(words, DRAWS), np.tile(right, DRAWS)),
    }


def reviews(model: FrozenModel, inputs: Inputs) -> Hits:
    """Tells a good review from a bad one, the text encoder fine-tuned."""
    found = _every(REVIEWS)
    hits = np.zeros(len(found), dtype=bool)
    for number, fold in enumerate(folds_of(found.labels)):
        parts = found.select(np.flatnonzero(~fold)), found.select(np.flatnonzero(fold))
        hits[fold] = tuned_texts(f"reviews_{number}", model, parts)
    return {"language/reviews": ("reviews", np.arange(len(found)), hits)}


def category_question(model: FrozenModel, inputs: Inputs) -> Hits:
    """Answers whether a drawing shows a thing of some kind, all encoders fine-tuned, in unseen styles."""
    samples = inputs.unseen_style
    parts = (questions(training_pairs(inputs)), questions(samples))
    hits = tuned_pairs("category_question", model, parts)
    return {"multimodal/category_question": ("concepts", samples.column("concept"), hits)}


MEASURES: dict[str, Measure] = {
    "other_pictures": other_pictures,
    "glosses": glosses,
    "reviews": reviews,
    "category_question": category_question,
}
NUMBERS: dict[str, tuple[str, ...]] = {
    "other_pictures": ("vision/animals", "vision/stamps"),
    "glosses": ("language/category", "language/frozen_category"),
    "reviews": ("language/reviews",),
    "category_question": ("multimodal/category_question",),
}
"""Measure -> its numbers."""


def questions(samples: Samples) -> LabelledPairs:
    """Asks of every drawing whether it is of its own subgroup or, in turn, of another drawing's."""
    subgroups = samples.column("subgroup")
    others = draw_mismatches(subgroups, np.zeros(len(subgroups), dtype=np.int64))
    turn = np.arange(len(samples)) % 2
    turn[others < 0] = 1  # there is no other subgroup
    asked = subgroups[np.where(turn == 1, np.arange(len(samples)), others)]
    return LabelledPairs(
        samples.name,
        samples.keys,
        lambda row: samples.encoded_images[row],
        tuple(f"is this {name.replace('-', ' ')}?" for name in asked),
        turn.astype(np.int64),
        ANSWERS,
    )


def folds_of(labels: np.ndarray) -> list[np.ndarray]:
    """Divides samples into folds, every class in turn: [N] bool for each fold."""
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turn[rows] = np.arange(len(rows)) % FOLDS
    return [turn == fold for fold in range(FOLDS)]


def _every(data: OwnText) -> LabelledTexts:
    """Reads both splits of a set of texts as one."""
    parts = [data.read(ROOT / data.name, split) for split in ("train", "test")]
    texts = tuple(text for part in parts for text in part.texts)
    labels = np.concatenate([part.labels for part in parts])
    return LabelledTexts(data.name, texts, labels, parts[0].class_names)


def _unseen(inputs: Inputs, told: tuple[str, ...]) -> np.ndarray:
    """Says which of some texts explain words that no gloss of training explains: [N] bool."""
    seen = {word.lower() for word in inputs.train_texts.column("word")}
    return np.array([word_of(text) not in seen for text in told])


def _features(model: FrozenModel, samples: LabelledImages) -> Tensor:
    return model.image_features(Seen(samples, CLIP_TRANSFORM), ASKED_BY)


def _probed(train: Tensor, labels: np.ndarray, test: Tensor) -> np.ndarray:
    """Fits a probe like the demo's; returns the classes of the test features."""
    learned, seen = (part.float().cpu().numpy() for part in (train, test))
    return standardised(learned, labels, np.zeros(len(labels)))(seen)
