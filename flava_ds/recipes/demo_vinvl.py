"""A small VinVL on the demo's scenes, as a baseline for the demo's FLAVA."""

from flava_ds.config import Config
from flava_ds.families.vinvl.config import VinvlConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.tag_contrast import TagContrastConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, demo_regions, demo_scenes, demo_words, like_demo


def demo_vinvl() -> Config:
    """Returns a VinVL on scenes of the demo's drawings, for the same number of training FLOPs.

    Optimizer and vocabulary are the demo's; model, data and losses differ. Tags are the subgroups that the
    demo's detector finds.
    """
    return like_demo(
        "demo_vinvl",
        model=VinvlConfig(
            image=demo_regions(), text=demo_words(), detector="demo", initializer_range=INITIALIZER_RANGE
        ),
        objectives={
            "mmm_text": MultimodalMaskedTextConfig(whole_word=False, tied_decoder=True),
            "tag_contrast": TagContrastConfig(),
        },
        sources={"scenes": demo_scenes(max_tokens=48)},
        # By Task.flops over 4 batches of each source: 39.0 GFLOP per step (the demo: 24.9), both without the
        # codebook and the detector.
        steps=383,
    )
