"""A small ALIGN on the demo's pairs, as a baseline for the demo's FLAVA."""

from flava_ds.config import Config
from flava_ds.families.align.config import AlignConfig, EfficientNetConfig
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, demo_source, demo_words, like_demo


def demo_align() -> Config:
    """Returns an ALIGN on the demo's pairs alone, for the same number of training FLOPs.

    Optimizer, augmentation, vocabulary and batch are the demo's; model and losses differ, and images are 64
    pixels. The temperature starts where CLIP's does: from 1 it would take longer to fall than the run.
    """
    text = demo_words(num_hidden_layers=2)
    image = EfficientNetConfig(image_size=64, width=0.6, depth=1.0, norm_momentum=0.9)
    return like_demo(
        "demo_align",
        model=AlignConfig(image=image, text=text, temperature_init=0.07, initializer_range=INITIALIZER_RANGE),
        objectives={
            "global_contrastive": GlobalContrastiveConfig(
                weight=2.0, label_smoothing=0.1, logit_scale_max=10.0
            )
        },
        sources={"pair": demo_source("pair", masked_share=1.0)},
        # By Task.flops over 20 batches: 14.9 GFLOP per step (the demo: 24.9), both without the codebook.
        steps=1000,
    )
