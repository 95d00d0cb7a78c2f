"""The paper's ablation at the demo's size: one recipe per row of its table, `ablation/ROW`.

Every row makes the same number of pair steps, in the same order, as the paper holds its updates on PMD fixed.
Rows with unpaired data make their other steps in between. Model, optimizer, batches and augmentation are the
demo's; CLIP has its own towers of the same width.

Source: paper, section 5 and table 4.
"""

import dataclasses

from flava_ds.config import Config, CosineScheduleConfig, ObjectiveConfig
from flava_ds.objectives.gradnorm import GradNormConfig
from flava_ds.objectives.local_contrastive import LocalContrastiveConfig
from flava_ds.objectives.uncertainty import UncertaintyConfig
from flava_ds.recipes.demo import demo, demo_objectives, demo_sources
from flava_ds.recipes.demo_clip import demo_clip
from flava_ds.recipes.demo_full import demo_full
from flava_ds.recipes.stages import Stages

PAIR_STEPS = 700
"""A multiple of 14, so that a share of 0.70 of the steps is exact."""
CONTRASTIVE_WEIGHT = 3.0
"""As in the demo; of all rows, so that they differ in nothing else."""
MULTIMODAL = ("global_contrastive", "mmm_image", "mmm_text", "itm")
BALANCED = {"flava_no_init_uncertainty": UncertaintyConfig(), "flava_no_init_gradnorm": GradNormConfig()}
"""Rows whose objectives' weights are learned."""
ROWS = (
    *("mim", "mlm", "flava_c_local", "flava_c", "flava_mm", "flava_no_init", "flava", "clip"),
    *("flava_mm_equal_compute", "flava_no_init_equal_compute", *BALANCED, "untrained"),
)
"""As in the paper's table 4, and five more."""
EQUAL_COMPUTE = {"flava_mm_equal_compute": 1.69, "flava_no_init_equal_compute": 1.49}
"""Rows with as many training FLOPs as `flava` and its initialisation -> their steps, in those of the row
without the suffix. A test counts the FLOPs.
"""


def ablation(row: str, pair_steps: int = PAIR_STEPS) -> Config | Stages:
    """Returns a row of the table: a run, or for `flava` its stages `image`, `text` and `joint`."""
    if row == "flava":
        return _initialised(pair_steps)
    if row == "clip":
        return _of_length(demo_clip(), row, pair_steps)
    if row == "untrained":
        return _at_rest()
    shared = EQUAL_COMPUTE.get(row, 1.0)
    if row.startswith("flava_no_init"):
        config = dataclasses.replace(demo(), balance=BALANCED.get(row))
        return _of_length(config, row, 20 * round(shared * pair_steps / 14))
    base, sources = demo(), demo_sources()
    pairs = dataclasses.replace(sources["pair"], weight=1.0)
    objectives = demo_objectives(CONTRASTIVE_WEIGHT)
    if row == "mim":
        # The pictures of the pairs, in the pairs' order.
        source = dataclasses.replace(pairs, kind="image", caption_key=None, masked_share=1.0)
        kept: dict[str, ObjectiveConfig] = {"mim": objectives["mim"]}
    elif row == "mlm":
        source = dataclasses.replace(pairs, kind="text", masked_share=1.0)
        kept = {"mlm": objectives["mlm"]}
    else:
        source = pairs
        names = MULTIMODAL if row.startswith("flava_mm") else ("global_contrastive",)
        kept = {name: objectives[name] for name in names}
        if row == "flava_c_local":
            local = LocalContrastiveConfig(weight=CONTRASTIVE_WEIGHT, parts_of_a_rank=4)
            kept["global_contrastive"] = local
    config = dataclasses.replace(
        base.with_sources({"pair": source}),
        objectives=kept,
        codebook_weights=base.codebook_weights if {"mim", "mmm_image"} & set(kept) else None,
    )
    return _of_length(config, row, round(shared * pair_steps))


def _initialised(pair_steps: int) -> Stages:
    """Returns full FLAVA, whose encoders begin as SimCLR and MLM on unpaired data leave them.

    The paper takes DINO and RoBERTa's recipe, whose cost it does not count.
    """
    steps = {"image": 3 * pair_steps // 7, "text": 3 * pair_steps // 7, "joint": 20 * (pair_steps // 14)}
    stages = tuple(
        dataclasses.replace(stage, config=_of_length(stage.config, f"flava/{stage.name}", steps[stage.name]))
        for stage in demo_full().stages
    )
    return Stages(name="ablation/flava", stages=stages)


def _at_rest() -> Config:
    """Returns a run whose one step moves nothing: its checkpoint has the weights that rows begin with."""
    config = _of_length(demo(), "untrained", 1)
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, lr=0.0),
        schedule=CosineScheduleConfig(warmup_steps=1, min_lr=0.0),
    )


def _of_length(config: Config, row: str, steps: int) -> Config:
    """Returns a run of so many steps, in the precision of all rows."""
    return dataclasses.replace(
        config,
        name=f"ablation/{row}",
        training=dataclasses.replace(config.training, total_steps=steps, precision="bf16"),
        schedule=dataclasses.replace(config.schedule, warmup_steps=max(1, steps // 20)),
    )
