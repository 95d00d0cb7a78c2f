"""Encoders fine-tuned on small parts of the training data, for measures of campaigns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import LabelledTexts, spaced
from flava_ds.evaluation.protocols import PairStates, TextStates
from flava_ds.evaluation.samples import Samples
from flava_ds.evaluation.tuning.fitting import Fitting, Network, inputs_of
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.heads import MakeHead, PairHead, SentenceHead, build_head
from flava_ds.evaluation.tuning.recipe import Recipe
from flava_ds.evaluation.tuning.saved import Saved

ASKED_BY = "this table"
DRAWS = 3
"""Training sets of a fine-tuned language task."""
TEXTS = Recipe(
    samples=2000, batch_size=32, lr=5e-4, updates=630, warmup_updates=38, epochs=10, weight_decay=0.1
)
PAIRS = Recipe(
    samples=3000, batch_size=32, lr=3e-4, updates=470, warmup_updates=28, epochs=5, weight_decay=0.1
)


def category_draws(inputs: Inputs) -> list[LabelledTexts]:
    """Returns the training sets of glosses, whose classes are the categories."""
    train = inputs.train_texts
    classes = tuple(sorted(set(train.column("category"))))
    rows = np.random.default_rng(0).permutation(len(train))
    chosen = [rows[draw * TEXTS.samples : (draw + 1) * TEXTS.samples] for draw in range(DRAWS)]
    return [categories_of(train.select(own, f"glosses {draw}"), classes) for draw, own in enumerate(chosen)]


def categories_of(samples: Samples, classes: tuple[str, ...]) -> LabelledTexts:
    """Labels glosses with their categories."""
    return LabelledTexts(
        samples.name, samples.captions, np.searchsorted(classes, samples.column("category")), classes
    )


def training_pairs(inputs: Inputs) -> Samples:
    """Returns the pairs of training that a task on pairs learns from."""
    return inputs.train.select(spaced(len(inputs.train), PAIRS.samples), "pairs of training")


def tuned_texts(name: str, model: FrozenModel, parts: tuple[Any, Any]) -> np.ndarray:
    """Fine-tunes the text encoder, see `tuned`."""
    encoder = model.need(TextStates, ASKED_BY).text_states
    return tuned(name, model, encoder, SentenceHead, TEXTS, parts)


def tuned_on_draws(model: FrozenModel, draws: list[LabelledTexts], test: LabelledTexts) -> np.ndarray:
    """Fine-tunes the text encoder on each draw; all see the same test texts: [DRAWS N] bool, in one row."""
    return np.concatenate(
        [tuned_texts(f"category_{number}", model, (draw, test)) for number, draw in enumerate(draws)]
    )


def tuned_pairs(name: str, model: FrozenModel, parts: tuple[Any, Any]) -> np.ndarray:
    """Fine-tunes all encoders at the model's image size, see `tuned`."""
    encoder = model.need(PairStates, ASKED_BY).pair_states
    return tuned(name, model, partial(encoder, 1.0), PairHead, PAIRS, parts)


def tuned(
    name: str,
    model: FrozenModel,
    encoder: Callable[[], Any],
    make_head: MakeHead,
    recipe: Recipe,
    parts: tuple[Any, Any],
) -> np.ndarray:
    """Fine-tunes on the first part; returns which samples of the second one the last weights get right."""
    (train, test), below = parts, encoder()
    recipe = recipe.fitted(len(train))
    head = build_head(make_head, below.width, len(train.class_names), recipe.seed)
    network = Network(below, head).to(model.device).eval()
    fitting = Fitting(name, network, inputs_of(model, train, below), Classes(), recipe, model.share)
    fitting.run(lambda progress: "", Saved(None, name, {}), model.workplace.tell)
    return fitting.predict(inputs_of(model, test, below)).argmax(1) == test.labels
