"""Masked language modelling of FLAVA's text encoder by RoBERTa-base's recipe, as FLAVA initialises it.

Source: FLAVA, section 4 (125K updates, batch 2048, learning rate 5e-4); what it does not say is from
fairseq's file for RoBERTa-base, marked [fairseq].
"""

import dataclasses

from flava_ds.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LinearScheduleConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.families.flava.config import FlavaConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.optimizers.adamw import AdamWConfig
from flava_ds.recipes.flava_base import published_model
from flava_ds.recipes.unused import SMALLEST_IMAGE, SMALLEST_MULTIMODAL


def mlm_base() -> Config:
    """Returns MLM on CCNews and BookCorpus. Give it text with --data.sources.text.shards: full passages of
    512 tokens, such as `flava-ds prepare convert passages` makes [fairseq: packed sentences].
    """
    return Config(
        name="mlm_base",
        model=mlm_model(),
        objectives={"mlm": MaskedTextConfig(mask_probability=0.15)},
        data=DataConfig(
            sources={"text": SourceConfig(kind="text", seed=2, shards="shards/text", max_tokens=512)},
            vocabulary="bert_base_uncased",  # FLAVA's; RoBERTa's own is of byte pairs
        ),
        training=TrainingConfig(
            total_steps=125_000,
            global_batch_size=2048,
            precision="bf16",  # [fairseq] fp16
            gradient_clipping=0.0,  # [fairseq]
        ),
        # [fairseq] Dropout of 0.1 is left out: FLAVA's encoders have none.
        optimizer=AdamWConfig(
            lr=5e-4,
            betas=(0.9, 0.98),  # [fairseq]
            eps=1e-6,  # [fairseq]
            weight_decay=0.01,  # [fairseq], on everything
            decay_norm_and_bias=True,
        ),
        schedule=LinearScheduleConfig(warmup_steps=10_000, min_lr=0.0),  # [fairseq]: polynomial of power 1
        # FLAVA takes the checkpoint of the lowest MLM loss
        checkpoint=CheckpointConfig(every_steps=5_000),
    )


def mlm_model() -> FlavaConfig:
    """Returns FLAVA's text encoder; the other encoders, which nothing trains here, are as small as they can
    be.
    """
    return dataclasses.replace(
        published_model(),
        image=SMALLEST_IMAGE,
        multimodal=SMALLEST_MULTIMODAL,
        projection_dim=SMALLEST_MULTIMODAL.hidden_size,
    )
