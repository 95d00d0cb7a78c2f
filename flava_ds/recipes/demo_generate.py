"""A short further training that teaches the demo's model to draw and to write: masks of any size, on whole
pictures.
"""

import dataclasses

from flava_ds.config import Config, CosineScheduleConfig, ImageTransformConfig
from flava_ds.objectives.masked_image import MultimodalMaskedImageConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.recipes.demo import demo


def demo_generate() -> Config:
    """Returns the recipe for `--initial-weights runs/demo...`: pairs, with masks of any share.

    The demo masks six of sixteen patches of pictures that vary in crop and colour, and few words. Drawing
    begins with all patches masked, writing with all words, and a caption's colours should mean what they say.
    The contrastive loss stays, to judge what is made.
    """
    base = demo()
    pair = dataclasses.replace(
        base.data.sources["pair"],
        weight=1.0,
        masked_share=1.0,
        transform=ImageTransformConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)),
    )
    return dataclasses.replace(
        base.with_sources({"pair": pair}),
        name="demo_generate",
        objectives={
            "global_contrastive": base.objectives["global_contrastive"],
            "mmm_image": MultimodalMaskedImageConfig(masking="any_share"),
            "mmm_text": MultimodalMaskedTextConfig(
                masking="any_share", mask_token_share=1.0, random_token_share=0.0
            ),
        },
        training=dataclasses.replace(base.training, total_steps=1500),
        schedule=CosineScheduleConfig(warmup_steps=100, min_lr=1e-5),
    )
