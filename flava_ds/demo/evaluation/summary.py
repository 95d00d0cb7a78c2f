"""Summarises an evaluation: the printed table, the demo's gates and its aims."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flava_ds.demo.evaluation.base import CHANCE, PIXELS
from flava_ds.evaluation.table import percent

FLAT, CONTRAST = "fluent-emoji-flat", "fluent-emoji-high-contrast"
MASKED = ("mlm", "mim", "mmm_text", "mmm_image")
MASKED_LOSS_FALL = 1.0
"""Nats by which a masked held-out loss must be below the first logged training loss, that of guessing.

One nat divides the perplexity by e. It is a difference because the targets' entropy (a codebook's use, a
vocabulary) affects a ratio, but not a difference.
"""

Gate = tuple[str, float, float, bool]
"""Name, value, threshold, passed. A missing value is nan and fails."""

ROWS = (
    (f"zero_shot/{FLAT}/top1_accuracy", "zero-shot concept, flat style, top-1"),
    (f"zero_shot/{FLAT}/top5_accuracy", "zero-shot concept, flat style, top-5"),
    (f"zero_shot/{CONTRAST}/top1_accuracy", "zero-shot concept, high contrast, top-1"),
    (f"zero_shot/{CONTRAST}/top5_accuracy", "zero-shot concept, high contrast, top-5"),
    ("zero_shot/unseen_concepts/top1_accuracy", "zero-shot, concepts never seen, top-1"),
    ("zero_shot/unseen_concepts/top5_accuracy", "zero-shot, concepts never seen, top-5"),
    ("retrieval/unseen_style/text_to_image_recall_at_1", "caption to image, unseen style, R@1"),
    ("retrieval/unseen_style/text_to_image_recall_at_5", "caption to image, unseen style, R@5"),
    ("retrieval/unseen_style/image_to_text_recall_at_1", "image to caption, unseen style, R@1"),
    ("retrieval/unseen_style/image_to_text_recall_at_5", "image to caption, unseen style, R@5"),
    ("retrieval/unseen_concepts/text_to_image_recall_at_1", "caption to image, unseen concepts, R@1"),
    ("retrieval/unseen_concepts/text_to_image_recall_at_5", "caption to image, unseen concepts, R@5"),
    ("retrieval/unseen_concepts/image_to_text_recall_at_1", "image to caption, unseen concepts, R@1"),
    ("retrieval/unseen_concepts/image_to_text_recall_at_5", "image to caption, unseen concepts, R@5"),
    (f"linear_probe/{FLAT}/group_accuracy", "group by linear probe, flat style"),
    (f"linear_probe/{CONTRAST}/group_accuracy", "group by linear probe, high contrast"),
    (f"linear_probe/{FLAT}/subgroup_accuracy", "subgroup by linear probe, flat style"),
    (f"linear_probe/{CONTRAST}/subgroup_accuracy", "subgroup by linear probe, high contrast"),
    ("linear_probe/unseen_concepts/group_accuracy", "group by linear probe, unseen concepts"),
    ("masked/mlm/accuracy", "masked tokens, text alone (MLM)"),
    ("masked/mim/accuracy", "masked patches, image alone (MIM)"),
    ("masked/mmm_text/accuracy", "masked tokens of pairs (MMM)"),
    ("masked/mmm_image/accuracy", "masked patches of pairs (MMM)"),
    ("matching/random/accuracy", "match or random mismatch (ITM)"),
    ("matching/same_subgroup/accuracy", "match or near mismatch (ITM)"),
)
"""The metrics in the table, and their labels."""


def rows(evaluation: dict[str, Any]) -> list[tuple[str, float, float | None, float | None]]:
    """Returns label, value, chance and pixel baseline of every measured metric of the table."""
    metrics = evaluation["metrics"]
    return [
        (label, metrics[name], metrics.get(name + CHANCE), metrics.get(name + PIXELS))
        for name, label in ROWS
        if name in metrics
    ]


def table(evaluation: dict[str, Any]) -> str:
    """Formats the evaluation: metric, value, chance (or most frequent class), nearest neighbour on pixels."""
    measured = rows(evaluation)
    width = max([len(label) for label, *_ in measured] + [len("held-out data")])
    lines = [f"{'held-out data':<{width}}  {'value':>7}  {'chance':>7}  {'pixels':>7}"]
    lines += [
        f"{label:<{width}}  " + "  ".join(f"{percent(value):>7}" for value in values)
        for label, *values in measured
    ]
    lines += [f"left out: {name} ({reason})" for name, reason in evaluation.get("left_out", {}).items()]
    return "\n".join(lines)


def gates(evaluation: dict[str, Any], thresholds: Mapping[str, float]) -> list[Gate]:
    """Returns the gates of a working run: the minima in `thresholds`, and those for every length."""
    metrics, losses = evaluation["metrics"], evaluation.get("losses", {})
    get = lambda name: metrics.get(name, math.nan)  # noqa: E731
    words_of = dict(ROWS)
    found = [_at_least(words_of[name], get(name), least) for name, least in thresholds.items()]
    for style, words in ((FLAT, "flat style"), (CONTRAST, "high contrast")):
        name = f"linear_probe/{style}/group_accuracy"
        found.append(_above(f"group above the most frequent class, {words}", get(name), get(name + CHANCE)))
    for objective in MASKED:
        first = losses.get(objective, {}).get("first", math.nan)
        found.append(
            _below(
                f"held-out {objective} loss a nat under its first value",
                get(f"masked/{objective}/loss_nats"),
                first - MASKED_LOSS_FALL,
            )
        )
    found.append(_at_least("image-text matching above chance", get("matching/random/accuracy"), 0.55))
    return found


def aims(evaluation: dict[str, Any]) -> list[Gate]:
    """Returns aims that fail no run: beating the nearest neighbour on pixels in both unseen styles."""
    metrics = evaluation["metrics"]
    found = []
    for style, words in ((FLAT, "flat style"), (CONTRAST, "high contrast")):
        for k in (1, 5):
            name = f"zero_shot/{style}/top{k}_accuracy"
            found.append(
                _above(
                    f"zero-shot top-{k} above pixel 1-NN, {words}",
                    metrics.get(name, math.nan),
                    metrics.get(name + PIXELS, math.nan),
                )
            )
    return found


def _at_least(name: str, value: float, threshold: float) -> Gate:
    return name, value, threshold, value >= threshold


def _above(name: str, value: float, threshold: float) -> Gate:
    return name, value, threshold, value > threshold


def _below(name: str, value: float, threshold: float) -> Gate:
    return name, value, threshold, value < threshold
