"""Measures a model in some of a campaign's ways, item by item."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from flava_ds.campaigns import measures, wider
from flava_ds.campaigns.fine_tuned import DRAWS, PAIRS, TEXTS
from flava_ds.campaigns.measures import Hits
from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.evaluation.datasets.scenes import COUNTS, SEED
from flava_ds.evaluation.frozen_model import FrozenModel, Lacking
from flava_ds.evaluation.tasks.scenes import PIXELS
from flava_ds.evaluation.tasks.scenes import RECIPE as SCENES

MEASURES = measures.MEASURES | wider.MEASURES
NUMBERS = measures.NUMBERS | wider.NUMBERS
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


def wider_protocols(domains: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns what is hashed besides for those of the wider measures; nothing without any."""
    return [wider.protocol_of(name) for name in domains if name in wider.MEASURES]


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
