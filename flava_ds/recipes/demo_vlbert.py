"""A small VL-BERT on the demo's scenes and text, as a baseline for the demo's FLAVA."""

from flava_ds.config import Config
from flava_ds.families.vlbert.config import VlbertConfig
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.masked_text import JointMaskedTextConfig
from flava_ds.recipes.demo import (
    INITIALIZER_RANGE,
    demo_regions,
    demo_scenes,
    demo_source,
    demo_words,
    like_demo,
)


def demo_vlbert() -> Config:
    """Returns a VL-BERT on scenes of the demo's drawings and its text, for the same number of training FLOPs.

    Optimizer and vocabulary are the demo's; model, data and losses differ.
    """
    return like_demo(
        "demo_vlbert",
        model=VlbertConfig(
            image=demo_regions(),
            text=demo_words(type_vocab_size=3),
            detector="demo",
            initializer_range=INITIALIZER_RANGE,
        ),
        objectives={
            "joint_mlm": JointMaskedTextConfig(tied_decoder=True),
            "mrc": MaskedRegionClassesConfig(hidden_share=0.9, loss="cross_entropy"),
        },
        sources={"scenes": demo_scenes(), "text": demo_source("text", global_batch_size=None)},
        # By Task.flops over 4 batches of each source: 39.0 GFLOP per step (the demo: 24.9), both without the
        # codebook and the detector.
        steps=383,
    )
