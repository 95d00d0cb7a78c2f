"""CLIP through the real trainer: one rank and two, every ZeRO stage, accumulation."""

import functools

import pytest
from real_runs import check_losses_of_every_split, every_stage, family_config

from flava_ds.families.clip.config import ClipConfig, ImageTowerConfig, TextTowerConfig
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.sigmoid_contrastive import SigmoidContrastiveConfig


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path, told):
    image = ImageTowerConfig(
        image_size=24,
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        patch_dropout=0.5,
    )
    text = TextTowerConfig(
        vocab_size=200,
        max_position_embeddings=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=28,
    )
    make = functools.partial(
        family_config,
        tmp_path,
        kind="pair",
        model=ClipConfig(image=image, text=text, projection_dim=12),
        objectives={
            "global_contrastive": GlobalContrastiveConfig(),
            "sigmoid": SigmoidContrastiveConfig(weight=0.1, logit_bias_init=-3.0),
        },
    )
    check_losses_of_every_split(every_stage(make), told)
