"""A small LXMERT on the demo's scenes, as a baseline for the demo's FLAVA."""

import dataclasses

from flava_ds.config import Config
from flava_ds.families.two_streams.config import LxmertConfig, LxmertRegionsConfig, LxmertTextConfig
from flava_ds.objectives.detected_regions import DetectedRegionsConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, VOCABULARY_SIZE, demo_regions, demo_scenes, like_demo


def demo_lxmert() -> Config:
    """Returns an LXMERT on scenes of the demo's drawings, for the same number of training FLOPs.

    Two layers read words, two regions, and two both. Optimizer and vocabulary are the demo's; model, data and
    losses differ.
    """
    return like_demo(
        "demo_lxmert",
        model=LxmertConfig(
            text=LxmertTextConfig(
                vocab_size=VOCABULARY_SIZE,
                max_position_embeddings=64,
                hidden_size=192,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=768,
            ),
            image=LxmertRegionsConfig(num_hidden_layers=2, **dataclasses.asdict(demo_regions())),
            cross_layers=2,
            detector="demo",
            initializer_range=INITIALIZER_RANGE,
        ),
        objectives={
            "mmm_text": MultimodalMaskedTextConfig(whole_word=False, tied_decoder=True),
            "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
            "detected_regions": DetectedRegionsConfig(hidden_share=0.9),
        },
        sources={"scenes": demo_scenes()},
        # By Task.flops over 8 batches: 24.9 GFLOP per step (the demo: 24.9), both without the codebook and
        # the detector.
        steps=600,
    )
