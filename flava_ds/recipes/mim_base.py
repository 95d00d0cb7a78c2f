"""Masked image modelling of FLAVA's image encoder by BEiT-base's recipe on ImageNet-1k: what the paper
compares DINO with as the first stage.

FLAVA tells that it masks as BEiT does and none of the other numbers. Those marked [code] were read in BEiT's
published code and in the command it gives for ImageNet-1k, those marked [paper] are Bao et al. 2021 from
memory; where both have a number they agree, but for the second beta.
"""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    CosineScheduleConfig,
    DataConfig,
    ImageTransformConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.optimizers.adamw import AdamWConfig
from flava_ds.recipes.dino_base import dino_model
from flava_ds.recipes.flava_base import flava_base, published_objectives

BATCH, EPOCHS = 2048, 800  # [code]
STEPS_PER_EPOCH = 1_281_167 // BATCH  # the last, incomplete batch of an epoch is dropped [code]


def mim_base() -> Config:
    """Returns MIM as published for BEiT-base. Give it images with --data.sources.imagenet.shards, and the
    codebook with --codebook-weights.

    BEiT's stochastic depth (0.1), relative positions and scaled branches (0.1 at the start) are left out:
    FLAVA's image encoder has neither of the last two (model.relative_positions would give it the first), and
    the stage passes its weights on to that. BEiT's last layers begin smaller, by the root of twice their
    number; ours do not.
    """
    transform = ImageTransformConfig(
        crop_scale=(0.08, 1.0),  # [code]
        crop_ratio=(3 / 4, 4 / 3),  # [code]
        horizontal_flip=0.5,  # [code]
        # [paper] and later versions of [code]; an earlier one has none
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
    )
    return Config(
        name="mim_base",
        # LayerNorm's eps of 1e-6 and ImageNet's mean and deviation, which are DINO's [code]
        model=dino_model(),
        codebook=flava_base().codebook,  # DALL-E's, at 112 pixels [code]
        objectives={"mim": published_objectives()["mim"]},  # 75 of 196 patches, blocks of 16 and more [code]
        data=DataConfig(
            sources={
                "imagenet": SourceConfig(kind="image", seed=1, shards="shards/imagenet", transform=transform)
            }
        ),
        training=TrainingConfig(
            total_steps=EPOCHS * STEPS_PER_EPOCH,  # 500,000, as [paper] says
            global_batch_size=BATCH,
            precision="bf16",  # [code] fp16
            gradient_clipping=3.0,  # [code], the global norm
        ),
        optimizer=AdamWConfig(
            lr=1.5e-3,  # [code]
            betas=(0.9, 0.98),  # [code]; [paper] 0.999
            eps=1e-8,  # [code]
            weight_decay=0.05,  # [code]
            decay_norm_and_bias=False,  # [code]: none on biases and what has one dimension,
            decay_tokens_and_positions=False,  # nor on CLS; the mask token decays there
        ),
        # [code]: ten epochs, then a cosine
        schedule=CosineScheduleConfig(warmup_steps=10 * STEPS_PER_EPOCH, min_lr=1e-5),
        checkpoint=CheckpointConfig(every_steps=20 * STEPS_PER_EPOCH),  # [code]
    )
