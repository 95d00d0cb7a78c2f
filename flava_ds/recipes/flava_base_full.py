"""The whole of FLAVA's training: image encoder by DINO, text encoder by MLM, then all three together."""

import dataclasses

from flava_ds.config import Config
from flava_ds.recipes.dino_base import dino_base, dino_model
from flava_ds.recipes.flava_base import flava_base
from flava_ds.recipes.mlm_base import mlm_base
from flava_ds.recipes.stages import Inherited, Stages, in_sequence


def flava_base_full() -> Stages:
    """Returns three stages: `image`, whose teacher passes its encoder on, `text` and `joint`.

    Source: paper, section 4. The paper took DINO's released weights for the first one.
    """
    return in_sequence(
        "flava_base_full",
        ("image", dino_base, ()),
        ("text", mlm_base, ()),
        (
            "joint",
            joint,
            (
                Inherited(stage="image", prefixes=("model.image_encoder.",), average="dino.teacher"),
                Inherited(stage="text", prefixes=("model.text_encoder.", "objectives.mlm.")),
            ),
        ),
    )


def joint() -> Config:
    """Returns flava_base with an image encoder that reads pixels and normalises layers as DINO's does."""
    base = flava_base()
    return dataclasses.replace(base, model=dataclasses.replace(base.model, image=dino_model().image))
