"""Plans published runs of CLIP and compares utilisation: one of plan_validation.py's parts.

Nothing is fitted. Captions count 77 tokens, as open_clip pads them; machines are taken to have four GPUs and
four 200 Gb/s adapters, and nothing is recomputed.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from flava_ds.families.clip.config import vit_b_16, vit_b_32, vit_l_14
from flava_ds.recipes import resolve
from flava_ds.scaling.captions import full
from flava_ds.scaling.facts import Facts
from flava_ds.scaling.hardware import cluster
from flava_ds.scaling.plan import plan
from flava_ds.scaling.setting import Measured, setting_of

MODELS = {"B/32": vit_b_32, "B/16": vit_b_16, "L/14": vit_l_14}
RUN = re.compile(r"LAION CLIP (\S+), batch (\d+)")


def planned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the published rows of models that are planned, each with its forecast MFU in per cent."""
    found = []
    for row in rows:
        named = RUN.fullmatch(row["run"])
        if named is None or named[1] not in MODELS:
            continue
        config = resolve("clip_base", ["--training.no-activation-checkpointing"])
        training = replace(config.training, global_batch_size=row["gpus"] * int(named[2]))
        config = replace(config, model=MODELS[named[1]](), training=training)
        lengths = {name: full(source.max_tokens) for name, source in config.drawn_sources.items()}
        machines = cluster(row["gpu"], row["gpus"], row["gpus"] // 4, "ib-200x4")
        rate = plan(setting_of(Facts.of(config), machines, Measured(config, lengths))).estimate(
            lambda each: each.mfu
        )
        ours = {end: 100 * getattr(rate, end) for end in ("low", "middle", "high")}
        found.append({**{key: row[key] for key in ("run", "gpu", "gpus", "mfu")}, "planned": ours})
    return found
