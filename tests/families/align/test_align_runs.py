"""ALIGN's recipes, and ALIGN through the real trainer: one rank and two, ZeRO stages, accumulation."""

import dataclasses
import functools
import json

import pytest
import torch
from families.align.align_peers import OBJECTIVES, tiny_config
from real_runs import check_losses_of_every_split, family_config

from flava_ds import config as configuration
from flava_ds.checkpoints.reader import load_weights
from flava_ds.config import from_dict, to_dict
from flava_ds.families.align.config import AlignConfig
from flava_ds.recipes import RECIPES


@pytest.mark.parametrize("recipe", ["align_base", "demo_align"])
def test_recipes_are_sound_and_survive_json(recipe):
    config = configuration.check(RECIPES[recipe]())
    again = from_dict(type(config), json.loads(json.dumps(to_dict(config))))
    assert again == config and isinstance(again.model, AlignConfig)


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path):
    """With smoothed labels and skipped blocks; under accumulation in two passes."""
    tiny = tiny_config().model
    image = dataclasses.replace(tiny.image, image_size=32, drop_path=0.2, norm_group=2)
    text = dataclasses.replace(tiny.text, max_position_embeddings=20)
    model = dataclasses.replace(tiny, image=image, text=text, temperature_init=0.2)
    make = functools.partial(family_config, tmp_path, kind="pair", model=model, objectives=OBJECTIVES)
    check_losses_of_every_split(make, ["global_contrastive"])
    one, two = (load_weights(tmp_path / "runs" / name) for name in ("one", "zero3"))
    running = [name for name in one if "running" in name]
    assert len(running) > 20
    for name in running:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
