"""A small VisualBERT on the demo's scenes, as a baseline for the demo's FLAVA."""

from flava_ds.config import Config
from flava_ds.families.visualbert.config import VisualBertConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.next_sentence import SentenceImageConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, demo_regions, demo_scenes, demo_words, like_demo


def demo_visualbert() -> Config:
    """Returns a VisualBERT on scenes of the demo's drawings, for the same number of training FLOPs.

    Optimizer and vocabulary are the demo's; model, data and losses differ.
    """
    return like_demo(
        "demo_visualbert",
        model=VisualBertConfig(
            image=demo_regions(), text=demo_words(), detector="demo", initializer_range=INITIALIZER_RANGE
        ),
        objectives={
            "mmm_text": MultimodalMaskedTextConfig(whole_word=False, tied_decoder=True),
            "sentence_image": SentenceImageConfig(),
        },
        sources={"scenes": demo_scenes(max_tokens=48)},
        # By Task.flops over 4 batches of each source: 53.7 GFLOP per step (the demo: 24.9), both without the
        # codebook and the detector.
        steps=278,
    )
