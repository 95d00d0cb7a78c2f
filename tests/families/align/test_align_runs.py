"""ALIGN through the real trainer: one rank and two, ZeRO stages, accumulation."""

import dataclasses
import functools

import pytest
import torch
from families.align.align_peers import OBJECTIVES, tiny_config
from real_runs import check_losses_of_every_split, every_stage, family_config

from flava_ds.checkpoints.reader import load_weights


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path, told):
    """With smoothed labels, skipped blocks and dropout; under accumulation in two passes. Thirty norms over
    16 to 4,096 numbers enlarge rounding: 1.1e-6 apart after six steps, less than 1e-7 in the first.
    """
    tiny = tiny_config().model
    image = dataclasses.replace(tiny.image, drop_path=0.2)
    text = dataclasses.replace(tiny.text, max_position_embeddings=20, hidden_dropout=0.1)
    model = dataclasses.replace(tiny, image=image, text=text, temperature_init=0.2)
    make = functools.partial(family_config, tmp_path, kind="pair", model=model, objectives=OBJECTIVES)
    check_losses_of_every_split(every_stage(make), told, rel=1e-5)
    # Those of the first norm: a bias before a later one has no gradient but rounding, which Adam enlarges.
    one, two = (load_weights(tmp_path / "runs" / name) for name in ("one", "zero3"))
    for name in ("mean", "var"):
        name = f"model.image_encoder.stem_norm.running_{name}"
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
        assert float(one[name].std()) > 1e-3, "it is no longer that of the start"
