"""Masked language modelling for the demo's text encoder, on its glosses."""

from flava_ds.config import Config
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.recipes.demo import demo_encoder


def demo_mlm() -> Config:
    """Returns the demo's model and optimizer with MLM on its text alone."""
    return demo_encoder("demo_mlm", {"mlm": MaskedTextConfig(mask_probability=0.3)}, "text")
