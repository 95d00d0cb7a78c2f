"""DINO for the demo's image encoder: the published objective, small. What it reaches in minutes is told in
docs/stages.md, beside SimCLR, with which the demo's stages begin.
"""

import dataclasses

from flava_ds.config import Config, EvaluationConfig, ImageTransformConfig
from flava_ds.objectives.dino import DinoConfig
from flava_ds.recipes.demo import DATA, demo_encoder


def demo_dino() -> Config:
    """Returns the demo's model and optimizer with DINO on its images: 1,024 prototypes, two crops of 48
    pixels and four of 24. The teacher's nearest neighbours are watched, beside those of raw pixels.
    """
    large = ImageTransformConfig(
        crop_scale=(0.4, 1.0),
        horizontal_flip=0.5,
        color_jitter=0.4,
        jitter_probability=0.8,
        grayscale=0.2,
        invert=0.1,
        edges=0.15,
    )
    dino = DinoConfig(
        num_prototypes=1024,
        head_hidden_size=256,
        bottleneck_size=64,
        teacher_momentum=0.99,
        freeze_last_layer_steps=50,
        stochastic_depth=0.0,  # for two blocks
        local_crops=4,
        local_size=24,
        first_global=large,
        second_global=dataclasses.replace(large, solarize=0.2),
        local=dataclasses.replace(large, crop_scale=(0.1, 0.4)),
        watch_every_steps=10,
    )
    return dataclasses.replace(
        demo_encoder("demo_dino", {"dino": dino}, "image"),
        evaluation=EvaluationConfig(
            every_steps=100,
            tasks=("drawings_neighbours",),
            data_root=str(DATA.parent),
            average="dino.teacher",
            references=True,
        ),
    )
