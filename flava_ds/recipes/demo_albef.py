"""A small ALBEF on the demo's pairs, as a baseline for the demo's FLAVA."""

import dataclasses

from flava_ds.config import Config
from flava_ds.config.encoders import Shape
from flava_ds.families.albef.config import AlbefConfig, AlbefImageConfig, AlbefTextConfig
from flava_ds.objectives.distilled_text import DistilledTextConfig
from flava_ds.objectives.hard_matching import HardMatchingConfig
from flava_ds.objectives.momentum_contrastive import MomentumContrastiveConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, VOCABULARY_SIZE, demo, demo_source

STEPS = 258
"""By Task.flops and target_flops over 40 steps: 57.9 GFLOP per step (the demo: 24.9, 600 times)."""


def demo_albef() -> Config:
    """Returns an ALBEF on the demo's pairs alone, for the same number of training FLOPs, its teacher's among
    them.

    Optimizer, augmentation, vocabulary and weight of the contrastive loss are the demo's; model and losses
    differ, and batches are half as large, because a pair takes several passes. The published teacher forgets
    within a thousandth of its run, and its queue lasts as long; here they would last a fifth of it. So the
    teacher follows faster, and there is no queue: while features change this fast, the loss falls by telling
    old ones from new ones, and with a queue of 2,048 or of 256 it ends where nothing is learned.
    """
    base = demo()
    shape = Shape(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    return dataclasses.replace(
        base.with_sources({"pair": demo_source("pair", masked_share=1.0, global_batch_size=64)}),
        name="demo_albef",
        model=AlbefConfig(
            image=AlbefImageConfig(image_size=48, patch_size=12, num_hidden_layers=4, **shape),
            text=AlbefTextConfig(
                vocab_size=VOCABULARY_SIZE, max_position_embeddings=64, num_hidden_layers=2, **shape
            ),
            fusion_layers=2,
            projection_dim=192,
            teacher_momentum=0.9,
            initializer_range=INITIALIZER_RANGE,
        ),
        codebook_weights=None,
        objectives={
            "itc": MomentumContrastiveConfig(
                weight=3.0, queue_size=0, distillation=0.4, distillation_steps=STEPS // 5
            ),
            "itm": HardMatchingConfig(),
            "mlm": DistilledTextConfig(distillation=0.4, distillation_steps=STEPS // 5),
        },
        training=dataclasses.replace(base.training, total_steps=STEPS),
        schedule=dataclasses.replace(base.schedule, warmup_steps=STEPS // 20),
    )
