"""A small ViLT on the demo's pairs, as a baseline for the demo's FLAVA."""

from flava_ds.config import Config
from flava_ds.families.vilt.config import StreamConfig, ViltConfig, WordsConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, VOCABULARY_SIZE, demo_source, like_demo


def demo_vilt() -> Config:
    """Returns a ViLT on the demo's pairs alone, for the same number of training FLOPs.

    Optimizer, augmentation and vocabulary are the demo's; model and losses differ, and batches are half as
    large for twice the steps, because a pair takes two passes through all layers.
    """
    return like_demo(
        "demo_vilt",
        model=ViltConfig(
            image=StreamConfig(
                image_size=48,
                patch_size=12,
                hidden_size=192,
                num_hidden_layers=6,
                num_attention_heads=3,
                intermediate_size=768,
            ),
            text=WordsConfig(vocab_size=VOCABULARY_SIZE),
            initializer_range=INITIALIZER_RANGE,
        ),
        objectives={
            "mmm_text": MultimodalMaskedTextConfig(tied_decoder=True),
            "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
            "wpa": WordPatchAlignmentConfig(weight=0.1),
        },
        sources={"pair": demo_source("pair", masked_share=1.0, global_batch_size=64)},
        # By Task.flops over 40 steps: 54.4 GFLOP per step (the demo: 24.9), both without the codebook.
        steps=275,
    )
