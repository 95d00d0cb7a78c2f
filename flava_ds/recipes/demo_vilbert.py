"""A small ViLBERT on the demo's scenes, as a baseline for the demo's FLAVA."""

import dataclasses

from flava_ds.config import Config
from flava_ds.families.two_streams.config import VilbertConfig, VilbertRegionsConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, demo_regions, demo_scenes, demo_words, like_demo


def demo_vilbert() -> Config:
    """Returns a ViLBERT on scenes of the demo's drawings, for the same number of training FLOPs.

    Half of four layers of words come first, as published; then two co-attention layers take turns with a
    layer of each stream. Optimizer and vocabulary are the demo's; model, data and losses differ.
    """
    return like_demo(
        "demo_vilbert",
        model=VilbertConfig(
            text=demo_words(num_hidden_layers=4),
            image=VilbertRegionsConfig(
                num_hidden_layers=2,
                hidden_size=192,
                num_attention_heads=3,
                intermediate_size=192,
                **dataclasses.asdict(demo_regions()),
            ),
            co_attention_layers=2,
            co_attention_heads=3,
            co_attention_size=192,
            detector="demo",
            initializer_range=INITIALIZER_RANGE,
        ),
        objectives={
            "mmm_text": MultimodalMaskedTextConfig(whole_word=False, tied_decoder=True),
            "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
            "mrc": MaskedRegionClassesConfig(hidden_share=0.9),
        },
        sources={"scenes": demo_scenes()},
        # By Task.flops over 8 batches: 26.6 GFLOP per step (the demo: 24.9), both without the codebook and
        # the detector.
        steps=562,
    )
