"""CLIP with its published hyper-parameters; comments mark where the paper is silent or this run differs."""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    CosineScheduleConfig,
    DataConfig,
    ImageTransformConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.families.clip.config import vit_b_16
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.optimizers.adamw import AdamWConfig


def clip_base() -> Config:
    """Returns CLIP ViT-B/16 as published: batch 32,768, 32 epochs of 400 million pairs.

    Set its data with --data.sources.pairs.shards. Other sizes: vit_b_32 and vit_l_14 in
    flava_ds/families/clip/config.py. Source: Radford et al. 2021, section 2.5 and Table 18.
    """
    return Config(
        name="clip_base",
        seed=0,  # not published
        model=vit_b_16(activation="quick_gelu"),  # not in the paper; as in the released weights
        # "scaling the logits by more than 100" is prevented
        objectives={"global_contrastive": GlobalContrastiveConfig(logit_scale_max=4.6052)},
        data=DataConfig(sources=published_sources(), vocabulary="clip_bpe"),
        training=TrainingConfig(
            # 32 epochs x 400 million pairs / 32,768; the data set itself is not published
            total_steps=390_625,
            global_batch_size=32_768,
            # published: fp16 with loss scaling and fp16 moments; here master weights and moments are fp32
            precision="bf16",
            activation_checkpointing=True,
            gradient_clipping=0.0,  # none is mentioned
        ),
        optimizer=AdamWConfig(
            lr=5e-4,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.2,
            # "all weights that are not gains or biases"; also exempts the class token, as open_clip does
            decay_norm_and_bias=False,
        ),
        schedule=CosineScheduleConfig(
            warmup_steps=2_000,
            min_lr=0.0,  # "cosine"; its final value is not published
        ),
        checkpoint=CheckpointConfig(every_steps=2_000),  # not published
    )


def published_sources() -> dict[str, SourceConfig]:
    """Returns image-text pairs from the web."""
    # "A random square crop from resized images is the only data augmentation". The range of its area is not
    # published; 0.9 is open_clip's. A ratio of 1 makes it square.
    transform = ImageTransformConfig(crop_scale=(0.9, 1.0), crop_ratio=(1.0, 1.0))
    return {
        "pairs": SourceConfig(kind="pair", seed=0, shards="shards/pairs", max_tokens=77, transform=transform)
    }
