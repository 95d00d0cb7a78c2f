"""All of FLAVA's training: image encoder by DINO or MIM, or released, text encoder by MLM, then all three
together.
"""

import dataclasses
from typing import Literal

from flava_ds.config import Config
from flava_ds.recipes.dino_base import dino_base, dino_model
from flava_ds.recipes.flava_base import flava_base, published_model
from flava_ds.recipes.mim_base import mim_base
from flava_ds.recipes.mlm_base import mlm_base
from flava_ds.recipes.stages import Inherited, Stages, in_sequence


def flava_base_full(image: Literal["dino", "mim", "released"] = "dino") -> Stages:
    """Returns three stages: `image`, `text` and `joint`. DINO's teacher passes its encoder on; MIM passes on
    its encoder and its head, which the joint run has too. With `released` there is no image stage: the joint
    run's initial_weights have the encoder.

    Source: paper, section 4, and table C.1, which compares DINO's and BEiT's weights as a beginning; both
    were taken as released.
    """
    encoder = ("model.image_encoder.",)
    text = Inherited(stage="text", prefixes=("model.text_encoder.", "objectives.mlm."))
    if image == "released":
        return in_sequence("flava_base_full_released", ("text", mlm_base, ()), ("joint", joint, (text,)))
    name, recipe, inherited = {
        "dino": (
            "flava_base_full",
            dino_base,
            Inherited(stage="image", prefixes=encoder, average="dino.teacher"),
        ),
        "mim": (
            "flava_base_full_mim",
            mim_base,
            Inherited(stage="image", prefixes=(*encoder, "objectives.mim.")),
        ),
    }[image]
    return in_sequence(
        name, ("image", recipe, ()), ("text", mlm_base, ()), ("joint", joint, (inherited, text))
    )


def joint() -> Config:
    """Returns flava_base with an image encoder that reads pixels and normalises layers as DINO's and BEiT's
    do.
    """
    model = dataclasses.replace(published_model(), image=dino_model().image)
    return dataclasses.replace(flava_base(), model=model)
