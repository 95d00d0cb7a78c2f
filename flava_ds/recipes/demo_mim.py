"""Masked image modelling for the demo's image encoder, on its drawings alone."""

import dataclasses

from flava_ds.config import Config
from flava_ds.recipes.demo import CODEBOOK, demo_encoder, demo_objectives


def demo_mim() -> Config:
    """Returns the demo's model, optimizer and codebook with MIM on its images."""
    config = demo_encoder("demo_mim", {"mim": demo_objectives()["mim"]}, "image")
    return dataclasses.replace(config, codebook_weights=str(CODEBOOK))
