"""Masked image modelling for the demo's image encoder, on its drawings alone."""

import dataclasses

from flava_ds.config import Config
from flava_ds.recipes.demo import demo, demo_objectives, demo_sources


def demo_mim() -> Config:
    """Returns the demo's model, optimizer and codebook with MIM on its images."""
    base = demo()
    images = dataclasses.replace(demo_sources()["image"], weight=1.0)
    return dataclasses.replace(
        base,
        name="demo_mim",
        objectives={"mim": demo_objectives()["mim"]},
        data=dataclasses.replace(base.data, sources={"image": images}),
        training=dataclasses.replace(base.training, total_steps=300),
        schedule=dataclasses.replace(base.schedule, warmup_steps=20),
    )
