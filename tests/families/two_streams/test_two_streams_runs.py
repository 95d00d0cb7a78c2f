"""Recipes of LXMERT and ViLBERT, their batches, and both through the real trainer: one rank and two."""

import dataclasses
import json
import math

import pytest
from families.two_streams.two_stream_peers import lxmert, vilbert
from region_files import with_regions, write_regions
from stranger_runs import curve, split, stranger_config, train_all

from flava_ds import config as configuration
from flava_ds.config import from_dict, to_dict
from flava_ds.recipes import RECIPES

RUNS = {"lxmert": lxmert, "vilbert": vilbert}


@pytest.mark.parametrize("recipe", [f"{kind}{name}" for name in RUNS for kind in ("", "demo_")])
def test_recipes_are_sound_and_survive_json(recipe):
    name = recipe if recipe.startswith("demo") else f"{recipe}_base"
    config = configuration.check(RECIPES[name]())
    again = from_dict(type(config), json.loads(json.dumps(to_dict(config))))
    assert again == config and config.model.type in recipe


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(run_ranks, tmp_path):
    """One rank with four micro-batches; two with two, under ZeRO 1, and with one, under ZeRO 3."""
    shards, base = write_regions(tmp_path / "regions"), stranger_config(tmp_path)
    sources = {key: with_regions(source, shards) for key, source in base.data.sources.items()}
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, sources=sources))
    own = {name: family() for name, family in RUNS.items()}
    configs = {
        name: dataclasses.replace(base, model=tiny.model, objectives=tiny.objectives)
        for name, tiny in own.items()
    }
    two = [
        split(configs["lxmert"], "lxmert_two", "zero1", 2),
        split(configs["vilbert"], "vilbert_two", "zero3", 1),
    ]
    one = [split(config, f"{name}_one", "zero1", 4) for name, config in configs.items()]
    assert run_ranks(train_all, 2, tuple((run, None) for run in two)) == [[0, 0]] * 2
    assert run_ranks(train_all, 1, tuple((run, None) for run in one)) == [[0, 0]]
    for alone, other in zip(one, two, strict=True):
        expected = curve(alone)
        assert expected[0]["loss/mmm_text"] == pytest.approx(math.log(200), abs=0.3)
        assert expected[0]["loss/itm"] == pytest.approx(math.log(2), abs=0.1)
        for ours, theirs in zip(curve(other), expected, strict=True):
            # the norm of a gradient whose terms nearly cancel has more rounding than the losses
            assert ours.pop("grad_norm") == pytest.approx(theirs["grad_norm"], rel=1e-5), other.name
            assert ours == pytest.approx({key: theirs[key] for key in ours}, rel=1e-6, abs=1e-6), other.name
