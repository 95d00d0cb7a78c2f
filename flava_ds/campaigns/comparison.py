"""Every family on the same data, for the same training FLOPs, judged by the same measurements.

The rows are the families' demo recipes, whose lengths are set so that each has the demo's training FLOPs. A
row is measured in every domain for which its model has the capabilities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flava_ds.campaigns.ablation import number_of
from flava_ds.campaigns.campaign import Table
from flava_ds.campaigns.measures import MAJORITY
from flava_ds.config import Config
from flava_ds.evaluation.paired import bootstrap
from flava_ds.recipes import RECIPES

PIXELS = ("demo", "demo_clip", "demo_align", "demo_vilt", "demo_albef", "demo_simvlm", "demo_bert")
"""Recipes that read the demo's drawings or glosses; the first one is FLAVA."""
REGIONS = ("demo_uniter", "demo_visualbert", "demo_vinvl", "demo_vlbert", "demo_lxmert", "demo_vilbert")
"""Recipes that read what a detector finds in scenes of the same drawings."""
ROWS = (*PIXELS, *REGIONS, "demo_unit")
EXTRA_LABELS = dict.fromkeys(REGIONS, "subgroups") | {"demo_unit": "boxes, subgroups, answers, entailment"}
"""Labels that a row, or the detector whose regions it reads, has learned from."""
DETECTOR_TFLOP = 22.4
"""Of training the detector that rows of regions share: three times its forward passes, counted by a test."""
MEASURED = ("vision", "language", "retrieval", "fit")
COLUMNS = {
    "vision/group": "group",
    "vision/subgroup": "subgroup",
    "language/category": "gloss category",
    "multimodal/caption_to_image_reciprocal_rank": "caption to image",
    "multimodal/image_to_caption_reciprocal_rank": "image to caption",
    "multimodal/fit": "label fits",
    "multimodal/scene_questions": "scene questions",
    "multimodal/scene_entailment": "scene entailment",
}
"""Numbers of the table, in per cent."""


def recipe(row: str, percent: int) -> Config:
    """Returns a row's run at so many per cent of its recipe's steps."""
    config = RECIPES[row]()
    steps = max(2, round(config.training.total_steps * percent / 100))
    return dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, total_steps=steps, precision="bf16"),
        schedule=dataclasses.replace(config.schedule, warmup_steps=max(1, steps // 20)),
    )


TABLE = Table(
    name="comparison",
    rows=ROWS,
    recipe=recipe,
    works={"small": 200, "tiny": 4},
    domains=lambda row, work: MEASURED,
    some_lack=True,
    added=("scenes",),
    along=("vision", "retrieval"),
    option="--recipes",
)
"""Works are per cent of the demo's training FLOPs."""


def table_rows(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Returns the table so far, header first: per cent with standard errors over seeds and items, from two
    seeds on, and the number of seeds in brackets where not all were measured so; training TFLOP with those of
    frozen networks, beside the detector's own, and minutes of training, both of a run. A last row is what the
    most frequent answer scores.
    """
    rows = [["recipe", "seeds", "extra labels", *COLUMNS.values(), "TFLOP", "minutes"]]
    every = [result for own in results.values() for result in own]
    guesses = [_cell(every, f"{name}{MAJORITY}", 1) for name in COLUMNS]
    for row in (row for row in ROWS if row in results):
        own = sorted(results[row], key=lambda result: result["seed"])
        cells = [_cell(own, name) for name in COLUMNS]
        work, seconds = (
            sum(result[f"training_{of}"] for result in own) / len(own) for of in ("flops", "seconds")
        )
        rows.append(
            [
                row,
                str(len(own)),
                EXTRA_LABELS.get(row, ""),
                *cells,
                f"{work / 1e12:.1f}{f' + {DETECTOR_TFLOP:.0f}' * (row in REGIONS)}",
                f"{seconds / 60:.0f}",
            ]
        )
    if any(guess != "-" for guess in guesses):
        rows.append(["(the most frequent answer)", "", "", *guesses, "", ""])
    return rows


def _cell(own: Sequence[Mapping[str, Any]], name: str, most: int | None = None) -> str:
    """Formats a number of those results that have it, at most so many."""
    having = [result for result in own if name in result["metrics"]][:most]
    if not having:
        return "-"
    if most == 1:
        return score(number_of(having, name), 1)
    shown = score(number_of(having, name), len(having))
    return shown if len(having) == len(own) else f"{shown} ({len(having)})"


def score(number: Any, seeds: int) -> str:
    """Formats a number of some seeds."""
    if seeds < 2:
        return f"{100 * number.values().mean():.1f}"
    estimate = bootstrap([(100.0, number)])
    return f"{estimate.value:.1f} +- {estimate.standard_error:.1f}"
