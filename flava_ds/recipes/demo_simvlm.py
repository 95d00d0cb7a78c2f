"""A small SimVLM on the demo's pairs and text, as a baseline for the demo's FLAVA."""

from flava_ds.config import Config
from flava_ds.families.simvlm.config import ConvStemConfig, SidesConfig, SimvlmConfig, StackConfig
from flava_ds.objectives.prefix_lm import PrefixLmConfig, TextPrefixLmConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, VOCABULARY_SIZE, demo_source, like_demo


def demo_simvlm() -> Config:
    """Returns a SimVLM on the demo's pairs and text, eight to one, for the same number of training FLOPs.

    Optimizer, augmentation, vocabulary and batch are the demo's; model and losses differ, and images are
    64 pixels, of which the convolutions make 4 x 4 patches.
    """
    stack = StackConfig(hidden_size=192, num_hidden_layers=3, num_attention_heads=3, intermediate_size=768)
    return like_demo(
        "demo_simvlm",
        model=SimvlmConfig(
            image=ConvStemConfig(image_size=64, width=16, blocks=(1, 1, 2), norm_momentum=0.9),
            text=SidesConfig(vocab_size=VOCABULARY_SIZE, max_position_embeddings=64),
            encoder=stack,
            decoder=stack,
            initializer_range=INITIALIZER_RANGE,
        ),
        objectives={"prefix_lm": PrefixLmConfig(), "text_prefix_lm": TextPrefixLmConfig()},
        sources={
            "pair": demo_source("pair", weight=8.0, masked_share=1.0),
            "text": demo_source("text"),
        },
        # By Task.flops over 20 batches of each source: 40.7 GFLOP per step (the demo: 24.9), both without the
        # codebook.
        steps=367,
    )
