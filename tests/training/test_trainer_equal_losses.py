"""The recipe `flava_debug`, half of each pair batch masked: ranks, ZeRO stages and accumulation steps do not
change the six losses it logs.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import pytest
from real_runs import steps_of
from toy import partition_everything

from flava_ds.config import CheckpointConfig, EngineConfig
from flava_ds.recipes.flava_debug import flava_debug

STEPS = 12
LOSSES = {f"loss/{name}" for name in ("global_contrastive", "mim", "mlm", "mmm_image", "mmm_text", "itm")}


class Run(NamedTuple):
    """A run of STEPS steps."""

    name: str
    deepspeed_config: str
    accumulation: int = 1
    norms: bool = False
    """Whether it measures the gradient norm of each objective, for which it repeats every step."""


def train_all(folder: str, runs: list[Run]) -> list[int]:
    """On every rank: one whole run after the other; returns their statuses."""
    from flava_ds.build import build

    os.chdir(folder)
    recipe, statuses = flava_debug(), []
    pairs = dataclasses.replace(recipe.data.sources["pair"], masked_share=0.5)
    recipe = recipe.with_sources(recipe.data.sources | {"pair": pairs})
    for run in runs:
        config = dataclasses.replace(
            recipe,
            name=run.name,
            training=dataclasses.replace(
                recipe.training, total_steps=STEPS, gradient_accumulation_steps=run.accumulation
            ),
            engine=EngineConfig(deepspeed_config=run.deepspeed_config),
            checkpoint=CheckpointConfig(every_steps=0),
            logging=dataclasses.replace(
                recipe.logging,
                tensorboard=False,
                objective_gradient_norms_every=int(run.norms),
            ),
        )
        statuses.append(build(config).fit())
    return statuses


def logged(folder: Path, name: str) -> list[dict]:
    """What a run logged of every step, without what depends on time or on ties."""
    kept = ("loss/", "accuracy/mim", "accuracy/mlm", "accuracy/mmm", "accuracy/itm")
    return [
        {key: value for key, value in line.items() if key in ("step", "source", "lr") or key.startswith(kept)}
        for line in steps_of(folder / "runs" / name)
    ]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.usefixtures("demo_data")
def test_ranks_stages_and_accumulation_log_equal_losses(run_ranks, tmp_path):
    """Relative tolerance 1e-5 on every loss of each step; accuracies are counts over counts, so
    they are equal, too.

    test_equality.py compares all stages, numbers of ranks and ways to accumulate with plain torch, weights
    included, on batches of its own: here are the losses of the recipe, by one of each kind.

    Not compared is the contrastive one: a borrowed caption stands twice in its batch, and rounding decides
    which of two equal texts ranks first.
    """
    planned = {
        1: [Run("1_0", "zero0", norms=True), Run("1_four_micro_steps_0", "zero0", 4)],
        2: [
            Run("2_1", "zero1"),
            Run("2_3_all", partition_everything(tmp_path)),
            Run("2_four_micro_steps_2", "zero2", 4),
        ],
    }
    for ranks, runs in planned.items():
        assert run_ranks(train_all, ranks, str(tmp_path), runs) == [[0] * len(runs)] * ranks
    expected = logged(tmp_path, "1_0")
    assert len(expected) == STEPS and {line["source"] for line in expected} == {"pair", "image", "text"}
    assert {key for line in expected for key in line if key.startswith("loss/")} == LOSSES
    norms = {
        key
        for line in steps_of(tmp_path / "runs" / "1_0")
        for key in line
        if key.startswith("gradient_norm/")
    }
    assert norms == {name.replace("loss/", "gradient_norm/") for name in LOSSES}
    for run in planned[1] + planned[2]:
        for ours, theirs in zip(logged(tmp_path, run.name), expected, strict=True):
            assert ours.keys() == theirs.keys() and ours["source"] == theirs["source"], run.name
            numbers = [key for key in theirs if key != "source"]
            assert [ours[key] for key in numbers] == pytest.approx(
                [theirs[key] for key in numbers], rel=1e-5, abs=0
            ), (run.name, ours, theirs)
