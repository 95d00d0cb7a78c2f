"""DINO on ImageNet-1k with ViT-B/16: what FLAVA's image encoder was initialised from.

Numbers marked [VISSL] are those of that library's published reproduction of the ViT-B/16 run, [code] the
defaults of DINO's own code, [paper] Caron et al. 2021. The arguments file of the released weights was not
read.
"""

import dataclasses

from flava_ds.config import (
    CheckpointConfig,
    Config,
    CosineScheduleConfig,
    DataConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.families.flava.config import FlavaConfig
from flava_ds.objectives.dino import DinoConfig
from flava_ds.optimizers.adamw import AdamWConfig
from flava_ds.recipes.flava_base import published_model, published_sources
from flava_ds.recipes.unused import SMALLEST_MULTIMODAL, SMALLEST_TEXT

BATCH, EPOCHS = 1024, 400  # [VISSL]; [code] 512 and 100, for ViT-S
STEPS_PER_EPOCH = 1_281_167 // BATCH  # the last, incomplete batch of an epoch is dropped [code]


def dino_base() -> Config:
    """Returns DINO as published for ViT-B/16. Give it images with --data.sources.imagenet.shards."""
    transform = published_sources()["imagenet"].transform  # not used: DINO reads its own crops alone
    return Config(
        name="dino_base",
        model=dino_model(),
        objectives={"dino": published_dino()},
        data=DataConfig(
            sources={
                "imagenet": SourceConfig(kind="image", seed=1, shards="shards/imagenet", transform=transform)
            }
        ),
        training=TrainingConfig(
            total_steps=EPOCHS * STEPS_PER_EPOCH,
            global_batch_size=BATCH,
            precision="fp32",  # [VISSL]; [code] fp16
            gradient_clipping=0.3,  # [VISSL]; [code] 3.0
            clip_each_parameter=True,  # [code]
        ),
        optimizer=AdamWConfig(
            lr=2e-3,  # [VISSL]; [code] 5e-4 x batch / 256, which is the same
            betas=(0.9, 0.999),  # torch's default, as [code]
            eps=1e-8,  # torch's default
            weight_decay=0.04,  # [code]
            weight_decay_end=0.4,  # [code], along a cosine, every step
            decay_norm_and_bias=False,  # [code]: none on biases and what has one dimension,
            decay_tokens_and_positions=True,  # yet CLS and positions have three there
        ),
        # [VISSL] 8e-6 at the end; [code] 1e-6. Ten epochs of warm-up [code].
        schedule=CosineScheduleConfig(warmup_steps=10 * STEPS_PER_EPOCH, min_lr=8e-6),
        checkpoint=CheckpointConfig(every_steps=4 * STEPS_PER_EPOCH),
    )


def published_dino() -> DinoConfig:
    """Returns the objective: two crops of 224 pixels and eight of 96, with the augmentation of [code], which
    DinoConfig has by default.
    """
    return DinoConfig(
        num_prototypes=65_536,  # [paper]
        head_hidden_size=2048,  # [paper]
        bottleneck_size=256,  # [paper]
        student_temperature=0.1,  # [paper]
        teacher_temperature=0.04,  # [VISSL]
        teacher_temperature_end=0.07,  # [VISSL]
        teacher_temperature_steps=50 * STEPS_PER_EPOCH,  # [VISSL]: by epochs there, by steps here
        teacher_momentum=0.996,  # [paper]
        teacher_momentum_end=1.0,  # [paper]
        centre_momentum=0.9,  # [paper]
        freeze_last_layer_steps=3 * STEPS_PER_EPOCH,  # [VISSL]; [code] one epoch
        stochastic_depth=0.1,  # [code]
        local_crops=8,  # [VISSL]
        local_size=96,  # [code]
        watch_every_steps=50,
    )


def dino_model() -> FlavaConfig:
    """Returns FLAVA's image encoder with DINO's normalisation; the other encoders, which nothing trains here,
    are as small as they can be.
    """
    return dataclasses.replace(
        published_model(),
        image=VisionEncoderConfig(
            layer_norm_eps=1e-6,  # [code]
            image_mean=(0.485, 0.456, 0.406),  # [code]: ImageNet's, not CLIP's
            image_std=(0.229, 0.224, 0.225),
        ),
        text=SMALLEST_TEXT,
        multimodal=SMALLEST_MULTIMODAL,
        projection_dim=SMALLEST_MULTIMODAL.hidden_size,
    )
