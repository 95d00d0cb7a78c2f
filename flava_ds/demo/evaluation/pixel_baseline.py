"""A reference for trained models: the nearest neighbour on raw pixels, cached by the data's checksum."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np

from flava_ds.demo.evaluation.base import PIXELS
from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.nearest import recall, top_k
from flava_ds.evaluation.pixels import EDGE, pixel_vectors
from flava_ds.storage.atomic import write_whole

NEIGHBOURS = 64
"""Per image, so that five distinct concepts are among them (a concept has about six drawings)."""
VERSION = 1


def measure(model: FrozenModel, inputs: Inputs) -> dict[str, float]:
    """Returns the baseline under the names of the metrics that it belongs to; ignores the model."""
    path = cache_file(inputs)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        metrics = classify(inputs)
    with contextlib.suppress(OSError):  # In a read-only folder it is computed every time.
        write_whole(path, json.dumps(metrics))
    return metrics


def cache_file(inputs: Inputs) -> Path:
    """Path of the cached numbers of exactly this data."""
    return inputs.root / "cache" / f"pixel_baseline_v{VERSION}_{inputs.checksum[:24]}.json"


def classify(inputs: Inputs) -> dict[str, float]:
    """Predicts concept, group and subgroup of every image of the held-out styles, and the groups of unseen
    concepts, by the nearest training images on mean-centred, normalised 32 x 32 pixels.
    """
    train = inputs.train
    keys = pixel_vectors(train.pixels(EDGE))
    concepts = train.column("concept")
    metrics = {}
    for set_name, samples in inputs.held_out_sets().items():
        neighbours = top_k(pixel_vectors(samples.pixels(EDGE)), keys, NEIGHBOURS).numpy()
        if set_name != "unseen_concepts":
            right, found = samples.column("concept"), distinct(concepts[neighbours], 5)
            for k in (1, 5):
                metrics[f"zero_shot/{set_name}/top{k}_accuracy{PIXELS}"] = recall(found, right, k)
        for field in ("group", "subgroup"):
            nearest = train.column(field)[neighbours[:, 0]]
            metrics[f"linear_probe/{set_name}/{field}_accuracy{PIXELS}"] = float(
                (nearest == samples.column(field)).mean()
            )
    return metrics


def distinct(labels: np.ndarray, most: int) -> np.ndarray:
    """Keeps each row's first `most` distinct labels, padded with empty strings: [N k] -> [N most]."""
    found = np.full((len(labels), most), "", dtype=labels.dtype)
    for row, values in enumerate(labels):
        unique = list(dict.fromkeys(values))[:most]
        found[row, : len(unique)] = unique
    return found
