"""A small UNITER on the demo's scenes, as a baseline for the demo's FLAVA."""

from flava_ds.config import Config
from flava_ds.families.uniter.config import UniterConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.masked_region_features import MaskedRegionFeaturesConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, demo_regions, demo_scenes, demo_words, like_demo


def demo_uniter() -> Config:
    """Returns a UNITER on scenes of the demo's drawings, for the same number of training FLOPs.

    Optimizer and vocabulary are the demo's; model, data and losses differ. The regions' divergence is a sum
    over classes and not their mean, which would all but remove it.
    """
    return like_demo(
        "demo_uniter",
        model=UniterConfig(
            image=demo_regions(), text=demo_words(), detector="demo", initializer_range=INITIALIZER_RANGE
        ),
        objectives={
            "itm": ImageTextMatchingConfig(weight=2 / 6, mismatch_probability=0.5),
            "wpa": WordPatchAlignmentConfig(weight=0.1 * 2 / 6),
            "mmm_text": MultimodalMaskedTextConfig(weight=2 / 6, whole_word=False, tied_decoder=True),
            "mrfr": MaskedRegionFeaturesConfig(weight=1 / 6),
            "mrc": MaskedRegionClassesConfig(weight=1 / 6),
        },
        sources={"scenes": demo_scenes(global_batch_size=64)},
        # By Task.flops over 4 batches of each source: 47.6 GFLOP per step (the demo: 24.9), both without the
        # codebook and the detector.
        steps=314,
    )
