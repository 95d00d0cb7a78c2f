"""Image-text matching on held-out pairs: does this caption belong to this image?"""

from __future__ import annotations

import numpy as np

from flava_ds.demo.evaluation.base import CHANCE
from flava_ds.demo.evaluation.inputs import SEED, Inputs
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.protocols import Matcher

MOST_PAIRS = 1024
ASKED_BY = "the demo's matching"


def measure(model: FrozenModel, inputs: Inputs) -> dict[str, float]:
    """Tells matches from as many mismatches: random concepts, and the same subgroup's (hard); returns
    balanced accuracy and the area under the ROC curve for both kinds.

    Log odds assume equal prior odds. Inputs are unmasked.

    Source: paper, section 3.2 (ITM).
    """
    model.need(Matcher, ASKED_BY)  # fails before anything is read
    samples = inputs.unseen_style
    rows = np.arange(min(MOST_PAIRS, len(samples)))
    concepts, subgroups = samples.column("concept")[rows], samples.column("subgroup")[rows]
    wrong = {
        "random": draw_mismatches(concepts, np.zeros(len(rows), dtype=np.int64)),
        "same_subgroup": draw_mismatches(concepts, np.unique(subgroups, return_inverse=True)[1]),
    }
    captions = [samples.captions[row] for row in rows]
    ids = model.tokenizer.encode_batch(captions, model.most_tokens["pair"])
    # -1, for no partner, is read as row 0, and its score is of no use
    pairings = [[ids[max(partner, 0)] for partner in partners] for partners in (rows, *wrong.values())]
    scores = model.log_odds(samples.select(rows, "pairs to match"), pairings, ASKED_BY).cpu().numpy().T
    metrics: dict[str, float] = {}
    for (kind, partners), mismatch in zip(wrong.items(), scores[1:], strict=True):
        usable = partners >= 0
        if not usable.any():
            continue
        matched, mismatched = scores[0][usable], mismatch[usable]
        name = f"matching/{kind}/"
        metrics |= {
            f"{name}accuracy": float(((matched > 0).mean() + (mismatched <= 0).mean()) / 2),
            f"{name}accuracy{CHANCE}": 0.5,
            f"{name}auroc": area_under_curve(matched, mismatched),
            f"{name}auroc{CHANCE}": 0.5,
        }
    return metrics


def draw_mismatches(concepts: np.ndarray, pools: np.ndarray) -> np.ndarray:
    """Draws another sample from each one's pool, with another concept and a fixed seed; -1 if none: [N]."""
    draw = np.random.default_rng(SEED)
    partners = np.full(len(concepts), -1, dtype=np.int64)
    for pool in np.unique(pools):
        members = np.flatnonzero(pools == pool)
        for member in members:
            others = members[concepts[members] != concepts[member]]
            if len(others):
                partners[member] = draw.choice(others)
    return partners


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Returns the probability that a positive scores above a negative; ties count half."""
    ordered = np.sort(negative)
    below, not_above = (
        np.searchsorted(ordered, positive, side="left"),
        np.searchsorted(ordered, positive, side="right"),
    )
    return float((below + not_above).mean() / 2 / len(negative))
