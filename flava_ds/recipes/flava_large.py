"""A scale-up that the paper does not have; the shape is torchmultimodal's '900m' preset."""

import dataclasses

from flava_ds.config import Config, EngineConfig
from flava_ds.config.encoders import Shape
from flava_ds.recipes.flava_base import flava_base, published_model


def flava_large() -> Config:
    """Returns flava_base with 24 / 24 / 12 layers of width 1024, ZeRO-2 and activation checkpointing.

    There are 16 heads and MLPs of 4096. Everything that the preset does not mention is flava_base's,
    including the learning rate, which is untested at this size.
    """
    base, model = flava_base(), published_model()
    shape = Shape(hidden_size=1024, num_attention_heads=16, intermediate_size=4096)
    return dataclasses.replace(
        base,
        name="flava_large",
        model=dataclasses.replace(
            model,
            image=dataclasses.replace(model.image, num_hidden_layers=24, **shape),
            text=dataclasses.replace(model.text, num_hidden_layers=24, **shape),
            multimodal=dataclasses.replace(model.multimodal, num_hidden_layers=12, **shape),
            projection_dim=1024,  # the preset's heads follow its width
        ),
        training=dataclasses.replace(base.training, activation_checkpointing=True),  # as in the preset
        # the preset uses plain data parallelism at 8 samples per device
        engine=EngineConfig(deepspeed_config="zero2"),
    )
