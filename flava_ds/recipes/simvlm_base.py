"""SimVLM with its published hyper-parameters; comments mark what is recalled, silent, or different here."""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    ImageTransformConfig,
    LinearScheduleConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.families.simvlm.config import SimvlmConfig
from flava_ds.objectives.prefix_lm import PrefixLmConfig, TextPrefixLmConfig
from flava_ds.optimizers.adamw import AdamWConfig

STEPS = 1_000_000


def simvlm_base() -> Config:
    """Returns SimVLM-base as published: about a million steps of 4,096 pairs and 512 texts.

    Set its data with --data.sources.pairs.shards (the paper's are ALIGN's 1.8 billion) and .texts.shards
    (C4). Source: Wang et al. 2022, sections 3 and 4; all values are recalled, not read again.
    """
    return Config(
        name="simvlm_base",
        seed=0,  # not published
        # published: relative attention among patches, besides their positions; left out here. Not published:
        # pixel statistics, the eps of norms, how batch norms see the batch, and initial weights
        model=SimvlmConfig(),
        objectives={
            # the distribution of the prefix's length is not published; here uniform
            "prefix_lm": PrefixLmConfig(),
            "text_prefix_lm": TextPrefixLmConfig(),
        },
        data=DataConfig(
            # published: 4,096 pairs and 512 texts in each batch. Here a step has one kind of sample, and one
            # step in nine has texts, so that their shares are the same
            sources={
                "pairs": SourceConfig(
                    kind="pair",
                    seed=0,
                    shards="shards/pairs",
                    weight=8.0,
                    max_tokens=256,
                    # "random image cropping", its range not published; 0.9 is open_clip's
                    transform=ImageTransformConfig(crop_scale=(0.9, 1.0), crop_ratio=(1.0, 1.0)),
                ),
                "texts": SourceConfig(kind="text", seed=1, shards="shards/text", weight=1.0, max_tokens=256),
            },
            # published: 32,000 SentencePieces
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=STEPS,
            global_batch_size=4096,
            precision="bf16",  # not published
            activation_checkpointing=True,  # not published
            gradient_clipping=1.0,  # not published
        ),
        optimizer=AdamWConfig(
            lr=5e-4,
            betas=(0.9, 0.999),  # not published
            eps=1e-8,  # not published
            weight_decay=0.01,
            decay_norm_and_bias=False,  # not published
        ),
        # 2 % of the steps, then linear decay
        schedule=LinearScheduleConfig(warmup_steps=STEPS // 50, min_lr=0.0),
        checkpoint=CheckpointConfig(every_steps=5_000),  # not published
    )
