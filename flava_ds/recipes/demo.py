"""The demo: a small FLAVA on the committed data set, sized for ten minutes on two CPU cores."""

import dataclasses
from pathlib import Path
from typing import Any

from flava_ds.config import (
    CheckpointConfig,
    CodebookConfig,
    Config,
    CosineScheduleConfig,
    DataConfig,
    ImageTransformConfig,
    LoggingConfig,
    ObjectiveConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import BertTextConfig, RegionsConfig, Shape, VisionEncoderConfig
from flava_ds.config.family import FamilyConfig
from flava_ds.families.flava.config import (
    FlavaConfig,
    FlavaTextConfig,
    MultimodalEncoderConfig,
    flava_objectives,
)
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.optimizers.adamw import AdamWConfig

VOCABULARY = Path(__file__).parent.parent / "demo" / "vocab.txt"
VOCABULARY_SIZE = 4096
"""Number of its entries; a test compares."""
INITIALIZER_RANGE = 0.05
"""Deviation of initial weights. What was published, 0.02 at a width of 768, is as strong as 0.04 at 192 and
0.035 at 256; slightly more shortens the contrastive loss's slow start. With 0.02, a narrow model's layers
hardly change what they are given, and contrastive and matching losses stay at chance for hundreds of steps.
"""
CODEBOOK = VOCABULARY.with_name("codebook.safetensors")
"""Trained once by `make demo CODEBOOK=train`; codebook.json has its settings, seed and curve."""
DATA = Path("runs/demo_data")
"""Where the committed data set is unpacked, relative to the working directory."""
SCENES = DATA / "scenes-train"
"""Scenes of its drawings with regions, which are written when a recipe first reads them."""


def demo() -> Config:
    """Returns the recipe of `make demo`: six losses, three sources at 0.70 / 0.15 / 0.15, ZeRO-1."""
    return Config(
        name="demo",
        model=demo_model(hidden_size=256, num_attention_heads=4, layers=(2, 1, 2)),
        codebook=CodebookConfig(
            hidden_size=32,
            num_groups=3,
            num_blocks_per_group=1,
            vocab_size=512,
            image_size=16,
            decoder_init_size=64,
        ),
        codebook_weights=str(CODEBOOK),
        objectives=demo_objectives(contrastive_weight=3.0),
        data=DataConfig(sources=demo_sources(), vocabulary=str(VOCABULARY), num_workers=1),
        training=TrainingConfig(
            total_steps=600, global_batch_size=128, precision="bf16", gradient_clipping=1.0
        ),
        optimizer=AdamWConfig(lr=5e-4, weight_decay=0.1, betas=(0.9, 0.98), decay_norm_and_bias=False),
        schedule=CosineScheduleConfig(warmup_steps=30, min_lr=1e-5),
        checkpoint=CheckpointConfig(every_steps=200),
        logging=LoggingConfig(every_steps=5),
    )


def like_demo(
    name: str,
    *,
    model: FamilyConfig,
    objectives: dict[str, ObjectiveConfig],
    sources: dict[str, SourceConfig],
    steps: int,
) -> Config:
    """Returns another model's run with the demo's optimizer and vocabulary, without a codebook, so many steps
    long, a twentieth of them warm-up.
    """
    base = demo()
    return dataclasses.replace(
        base.with_sources(sources),
        name=name,
        model=model,
        codebook_weights=None,
        objectives=objectives,
        training=dataclasses.replace(base.training, total_steps=steps),
        schedule=dataclasses.replace(base.schedule, warmup_steps=round(steps / 20)),
    )


def demo_encoder(name: str, objectives: dict[str, ObjectiveConfig], source: str, **changed: Any) -> Config:
    """Returns 300 steps of the demo's model and optimizer for objectives of one encoder, on one of its
    sources alone, `changed`, without a codebook.
    """
    base = demo()
    return dataclasses.replace(
        base.with_sources({source: demo_source(source, **changed)}),
        name=name,
        objectives=objectives,
        codebook_weights=None,
        training=dataclasses.replace(base.training, total_steps=300),
        schedule=dataclasses.replace(base.schedule, warmup_steps=20),
    )


def demo_regions() -> RegionsConfig:
    """Returns what the demo's detector finds in 96-pixel scenes: 64 features, a class for each subgroup."""
    return RegionsConfig(feature_size=64, num_classes=97, image_size=96)


def demo_words(**changed: Any) -> BertTextConfig:
    """Returns the BERT of the demo's baselines, which in some of them reads regions beside the words."""
    shape = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    return BertTextConfig(vocab_size=VOCABULARY_SIZE, max_position_embeddings=64, **(shape | changed))


def demo_scenes(**changed: Any) -> SourceConfig:
    """Returns scenes of the demo's drawings with several captions each, and the regions found in them."""
    source = SourceConfig(
        kind="pair",
        seed=3,
        shards=str(SCENES),
        caption_key="captions",
        max_tokens=32,
        regions_key="regions.safetensors",
        max_regions=9,
    )
    return dataclasses.replace(source, **changed)


def demo_model(*, hidden_size: int, num_attention_heads: int, layers: tuple[int, int, int]) -> FlavaConfig:
    """Returns a small FLAVA for 48-pixel drawings and short captions.

    `layers` are the numbers of layers of the image, text and multimodal encoders.
    """
    shape = Shape(
        hidden_size=hidden_size, num_attention_heads=num_attention_heads, intermediate_size=4 * hidden_size
    )
    return FlavaConfig(
        image=VisionEncoderConfig(image_size=48, patch_size=12, num_hidden_layers=layers[0], **shape),
        text=FlavaTextConfig(
            vocab_size=VOCABULARY_SIZE, max_position_embeddings=64, num_hidden_layers=layers[1], **shape
        ),
        multimodal=MultimodalEncoderConfig(num_hidden_layers=layers[2], **shape),
        projection_dim=hidden_size,
        initializer_range=INITIALIZER_RANGE,
    )


def demo_objectives(contrastive_weight: float = 1.0) -> dict[str, ObjectiveConfig]:
    """Returns the six losses, with masks scaled from 196 patches to 16.

    Text steps are few, so they mask twice as many tokens.
    """
    return flava_objectives(
        global_contrastive=GlobalContrastiveConfig(weight=contrastive_weight),
        mim=MaskedImageConfig(num_masked_patches=6, min_patches_per_block=2),
        mmm_image=MultimodalMaskedImageConfig(num_masked_patches=6, min_patches_per_block=2),
        mlm=MaskedTextConfig(mask_probability=0.3),
    )


def demo_sources(
    global_batch_sizes: tuple[int, int, int] = (128, 64, 128), masked_share: float = 0.25
) -> dict[str, SourceConfig]:
    """Returns pairs, images and text of the demo data, drawn as in the paper; seeds are those of the docs.

    The held-out styles are drawing styles never seen in training, so the transforms vary what distinguishes
    styles: colour, polarity, outline. Pairs are varied little: with so few epochs, underfitting costs more.
    The contrastive loss, on which zero-shot results depend, takes a third of a pair step if every sample is
    masked, so only a share is masked.
    """
    strong = ImageTransformConfig(
        crop_scale=(0.7, 1.0), rotation_degrees=8.0, color_jitter=0.3, grayscale=0.2, invert=0.05, edges=0.12
    )
    weak = ImageTransformConfig(
        crop_scale=(0.85, 1.0),
        crop_ratio=(0.9, 1.1),
        rotation_degrees=3.0,
        color_jitter=0.2,
        grayscale=0.2,
        invert=0.02,
        edges=0.05,
    )
    pair, image, text = global_batch_sizes
    return {
        "pair": SourceConfig(
            kind="pair",
            seed=0,
            shards=str(DATA / "pairs-train"),
            weight=0.70,
            global_batch_size=pair,
            caption_key="captions",
            max_tokens=32,
            masked_share=masked_share,
            transform=weak,
        ),
        "image": SourceConfig(
            kind="image",
            seed=1,
            shards=str(DATA / "images"),
            weight=0.15,
            global_batch_size=image,
            transform=strong,
        ),
        "text": SourceConfig(
            kind="text", seed=2, shards=str(DATA / "text"), weight=0.15, global_batch_size=text, max_tokens=48
        ),
    }


def demo_source(name: str, *, weight: float = 1.0, **changed: Any) -> SourceConfig:
    """Returns one of these, `changed`."""
    return dataclasses.replace(demo_sources()[name], weight=weight, **changed)
