"""A small CLIP on the demo's pairs, as a baseline for the demo's FLAVA."""

from flava_ds.config import Config
from flava_ds.config.encoders import Shape
from flava_ds.families.clip.config import ClipConfig, ImageTowerConfig, TextTowerConfig
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.recipes.demo import VOCABULARY_SIZE, demo_source, like_demo


def demo_clip() -> Config:
    """Returns a CLIP of the demo's width on its pairs alone, for the same number of training FLOPs.

    Optimizer, augmentation, vocabulary and batch are the demo's; only model and losses differ.
    """
    shape = Shape(hidden_size=256, num_attention_heads=4, intermediate_size=1024)
    return like_demo(
        "demo_clip",
        model=ClipConfig(
            image=ImageTowerConfig(image_size=48, patch_size=12, num_hidden_layers=2, **shape),
            text=TextTowerConfig(
                vocab_size=VOCABULARY_SIZE, max_position_embeddings=64, num_hidden_layers=1, **shape
            ),
            projection_dim=256,
        ),
        objectives={"global_contrastive": GlobalContrastiveConfig()},
        sources={"pair": demo_source("pair", masked_share=1.0)},
        # By Task.flops over 40 steps: 17.0 GFLOP per step (the demo: 24.9), both without the codebook.
        steps=878,
    )
