"""Masked language modelling for the demo's text encoder, on its glosses."""

import dataclasses

from flava_ds.config import Config
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.recipes.demo import demo, demo_sources


def demo_mlm() -> Config:
    """Returns the demo's model and optimizer with MLM on its text alone."""
    base = demo()
    text = dataclasses.replace(demo_sources()["text"], weight=1.0)
    return dataclasses.replace(
        base,
        name="demo_mlm",
        objectives={"mlm": MaskedTextConfig(mask_probability=0.3)},
        codebook_weights=None,
        data=dataclasses.replace(base.data, sources={"text": text}),
        training=dataclasses.replace(base.training, total_steps=300),
        schedule=dataclasses.replace(base.schedule, warmup_steps=20),
    )
