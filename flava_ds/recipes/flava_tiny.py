"""A small FLAVA for your own pictures and captions: one source to name, about an hour on a laptop."""

from flava_ds.config import (
    CheckpointConfig,
    CodebookConfig,
    Config,
    CosineScheduleConfig,
    DataConfig,
    ImageTransformConfig,
    ObjectiveConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import Shape, VisionEncoderConfig
from flava_ds.families.flava.config import (
    FlavaConfig,
    FlavaTextConfig,
    MultimodalEncoderConfig,
    flava_objectives,
)
from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
from flava_ds.optimizers.adamw import AdamWConfig


def flava_tiny() -> Config:
    """Returns a FLAVA of width 192 for photographs of 112 pixels: six losses and one source, `pairs`.

    Give it data with --data.sources.pairs.shards and a codebook with --codebook-weights, trained by
    `flava-ds codebook train SHARDS --recipe flava_tiny`. Sources of images or text are added by name
    (docs/own_data.md); until then MIM and MLM, which read those, have nothing to do.
    """
    image = VisionEncoderConfig(image_size=112, patch_size=16, num_hidden_layers=4, **shape())
    return Config(
        name="flava_tiny",
        model=FlavaConfig(
            image=image,
            text=FlavaTextConfig(num_hidden_layers=3, **shape()),
            multimodal=MultimodalEncoderConfig(num_hidden_layers=2, **shape()),
            projection_dim=192,
            initializer_range=0.04,  # 0.02 at width 768, by the square root
        ),
        # four groups, as Hugging Face's layout wants them: 7 codes of 8 pixels along an edge
        codebook=CodebookConfig(
            hidden_size=32,
            num_groups=4,
            num_blocks_per_group=1,
            vocab_size=512,
            image_size=image.grid_size * 2**3,
            decoder_init_size=64,
        ),
        objectives=objectives(),
        data=DataConfig(
            sources={"pairs": SourceConfig(kind="pair", shards="shards/pairs", transform=transform())},
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=2000, global_batch_size=64, precision="bf16", gradient_clipping=1.0
        ),
        optimizer=AdamWConfig(lr=5e-4, weight_decay=0.1, betas=(0.9, 0.98), decay_norm_and_bias=False),
        schedule=CosineScheduleConfig(warmup_steps=100, min_lr=1e-5),
        checkpoint=CheckpointConfig(every_steps=500, every_minutes=10),
    )


def shape() -> Shape:
    """Returns the widths that all encoders share: ViT-Ti's."""
    return Shape(hidden_size=192, num_attention_heads=3, intermediate_size=768)


def objectives() -> dict[str, ObjectiveConfig]:
    """Returns the six losses, with the published 75 of 196 masked patches brought down to 49."""
    return flava_objectives(
        mim=MaskedImageConfig(num_masked_patches=19, min_patches_per_block=4),
        mmm_image=MultimodalMaskedImageConfig(num_masked_patches=19, min_patches_per_block=4),
    )


def transform() -> ImageTransformConfig:
    """Returns an augmentation for sets that training passes over many times."""
    return ImageTransformConfig(crop_scale=(0.6, 1.0), horizontal_flip=0.5, color_jitter=0.1)
