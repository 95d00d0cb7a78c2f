"""What a run reaches in each domain, item by item, on drawings and glosses that training never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.demo.evaluation.linear_probe import LinearProbe
from flava_ds.demo.evaluation.matching import draw_mismatches
from flava_ds.evaluation.datasets.scenes import COUNTS, SEED
from flava_ds.evaluation.frozen_model import FrozenModel, Lacking
from flava_ds.evaluation.labelled import LabelledPairs, LabelledTexts, spaced
from flava_ds.evaluation.protocols import PairStates, TextStates
from flava_ds.evaluation.samples import Samples, read_samples
from flava_ds.evaluation.tasks.scenes import PIXELS, QUESTIONS, STATEMENTS
from flava_ds.evaluation.tasks.scenes import RECIPE as SCENES
from flava_ds.evaluation.tuning.fitting import Fitting, Network, inputs_of
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.heads import MakeHead, PairHead, SentenceHead, build_head
from flava_ds.evaluation.tuning.recipe import Recipe
from flava_ds.evaluation.tuning.saved import Saved

ASKED_BY = "this table"
DRAWS = 3
"""Training sets of the fine-tuned language task."""
TEXTS = Recipe(
    samples=2000, batch_size=32, lr=5e-4, updates=630, warmup_updates=38, epochs=10, weight_decay=0.1
)
PAIRS = Recipe(
    samples=3000, batch_size=32, lr=3e-4, updates=470, warmup_updates=28, epochs=5, weight_decay=0.1
)
FITS = ("another concept", "same subgroup", "this concept")
"""Classes of the multimodal task: how a label fits a drawing."""
PROTOCOL = {
    "texts": asdict(TEXTS) | {"draws": DRAWS},
    "pairs": asdict(PAIRS),
    "vision": "group and subgroup by the demo's linear probe, unseen styles",
    "language": "category of unseen glosses, text encoder fine-tuned",
    "multimodal": "reciprocal rank both ways, fit of a label fine-tuned, unseen styles",
}
"""Part of what the settings of a result are hashed from."""
ADDED = {"scenes": {"recipe": asdict(SCENES), "pixels": PIXELS, "seed": SEED, "scenes": COUNTS}}
"""Protocols of domains that a result may lack: of other settings are only results that have another one."""
MAJORITY = "/majority"
"""Suffix of a number's reference: always the most frequent class."""
Hits = dict[str, tuple[str, np.ndarray, np.ndarray]]
"""Number -> what its clusters are called, each item's cluster [N], each item's value [N]."""


def measure(
    model: FrozenModel, inputs: Inputs, domains: tuple[str, ...], *, some_lack: bool = False
) -> dict[str, Any]:
    """Returns `metrics`, name -> value and its sum over each cluster's items, and `counts`, the items of each
    cluster. A name begins with its domain. With `some_lack` there is `lacks`, the domains that are left out
    -> the capability that the model lacks; without it, such a domain raises UserError.
    """
    found: Hits = {}
    lacks: dict[str, str] = {}
    for domain in domains:
        try:
            found |= MEASURES[domain](model, inputs)
        except Lacking as error:
            if not some_lack:
                raise
            lacks[domain] = str(error)
    metrics, counts = {}, {}
    for name, (clusters, of, values) in found.items():
        _, number = np.unique(of, return_inverse=True)
        scale = 1000 if name.endswith("reciprocal_rank") else 1
        sums = np.round(scale * np.bincount(number, values)).astype(int)
        metrics[name] = {
            "value": round(float(values.mean()), 6),
            "clusters": clusters,
            "scale": scale,
            "sums": sums.tolist(),
        }
        counts[clusters] = np.bincount(number).tolist()
    return {"metrics": metrics, "counts": counts} | ({"lacks": lacks} if some_lack else {})


def vision(model: FrozenModel, inputs: Inputs) -> Hits:
    """Classifies drawings in unseen styles by linear probes."""
    samples, probe = inputs.unseen_style, LinearProbe(inputs)
    return {
        f"vision/{field}": ("concepts", samples.column("concept"), *probe.hits(model, field, [samples]))
        for field in ("group", "subgroup")
    }


def language(model: FrozenModel, inputs: Inputs) -> Hits:
    """Fine-tunes the text encoder to tell a gloss's category, on several draws of training glosses."""
    train, test = read_samples(inputs.root / "text", images=False), inputs.texts
    classes = tuple(sorted(set(train.column("category"))))
    encoder = model.need(TextStates, ASKED_BY).text_states
    rows, values = np.random.default_rng(0).permutation(len(train)), []
    for draw in range(DRAWS):
        chosen = train.select(rows[draw * TEXTS.samples : (draw + 1) * TEXTS.samples], f"glosses {draw}")
        parts = (_texts(chosen, classes), _texts(test, classes))
        values.append(_tuned(f"category_{draw}", model, encoder, SentenceHead, TEXTS, parts))
    # All draws see the same test glosses, so each counts once, with the share of draws that get it right.
    words = np.tile(test.column("word"), DRAWS)
    return {"language/category": ("words", words, np.concatenate(values))}


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
    encoder = model.need(PairStates, ASKED_BY).pair_states
    train = inputs.train.select(spaced(len(inputs.train), PAIRS.samples), "pairs of training")
    parts = (_fits(train, inputs.labels), _fits(samples, inputs.labels))
    hits = _tuned("fit", model, partial(encoder, 1.0), PairHead, PAIRS, parts)
    return {"multimodal/fit": ("concepts", samples.column("concept"), hits)}


def scenes(model: FrozenModel, inputs: Inputs) -> Hits:
    """Answers questions on scenes and judges statements on them, all encoders fine-tuned; beside each, what
    the most frequent class of each kind of text scores.
    """
    encoder = model.need(PairStates, ASKED_BY).pair_states
    found: Hits = {}
    for data in (QUESTIONS, STATEMENTS):
        train, test = (data.read(inputs.root, split) for split in ("train", "unseen_style"))
        hits = _tuned(
            data.name, model, partial(encoder, PIXELS / model.image_size), PairHead, SCENES, (train, test)
        )
        for name, values in ((data.name, hits), (f"{data.name}{MAJORITY}", test.are_majority)):
            found[f"multimodal/{name}"] = ("scenes", np.array(test.keys), values)
    return found


def multimodal(model: FrozenModel, inputs: Inputs) -> Hits:
    """Both of these."""
    return retrieval(model, inputs) | fit(model, inputs)


MEASURES: dict[str, Callable[[FrozenModel, Inputs], Hits]] = {
    "vision": vision,
    "language": language,
    "multimodal": multimodal,
    "retrieval": retrieval,
    "fit": fit,
    "scenes": scenes,
}


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
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        above, ties = (scores > best).sum(1), ((scores == best) & ~right).sum(1)
        found.append(1 / (1 + above.double() + ties.double() / 2))
    return torch.cat(found).cpu().numpy()


def _tuned(
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


def _texts(samples: Samples, classes: tuple[str, ...]) -> LabelledTexts:
    return LabelledTexts(
        samples.name, samples.captions, np.searchsorted(classes, samples.column("category")), classes
    )


def _fits(samples: Samples, labels: Mapping[str, str]) -> LabelledPairs:
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
