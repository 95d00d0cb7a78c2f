"""A small BERT on the demo's text, as a baseline for the demo's FLAVA on text."""

from flava_ds.config import Config
from flava_ds.families.bert.config import BertConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.objectives.next_sentence import NextSentenceConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, demo_source, demo_words, like_demo


def demo_bert() -> Config:
    """Returns a BERT of the demo's width on its text alone, for the same number of training FLOPs.

    Optimizer, vocabulary and share of masked tokens are the demo's; only model and losses differ.
    """
    text = demo_words(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    return like_demo(
        "demo_bert",
        model=BertConfig(text=text, initializer_range=INITIALIZER_RANGE),
        objectives={
            "mlm": MaskedTextConfig(mask_probability=0.3, tied_decoder=True),
            "nsp": NextSentenceConfig(),
        },
        sources={"text": demo_source("text", global_batch_size=None)},
        # By Task.flops over 40 steps: 51.8 GFLOP per step, the demo's 24.9 over its three kinds; both without
        # the codebook.
        steps=289,
    )
