"""ALIGN with its published hyper-parameters and the public model's sizes; comments mark what is recalled,
silent, or different here.
"""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    ImageTransformConfig,
    LinearScheduleConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.align.config import AlignConfig
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.optimizers.lamb import LambConfig


def align_base() -> Config:
    """Returns ALIGN with EfficientNet-B7 and BERT-base, as coyo-align published it: 1.2 million steps of
    16,384 pairs, as in the paper.

    Set its data with --data.sources.pairs.shards; the paper's 1.8 billion are not public, COYO-700M is.
    Source: Jia et al. 2021, section 4, and the code of coyo-align.
    """
    return Config(
        name="align_base",
        seed=0,  # not published
        # the paper: EfficientNet-L2 and BERT-large, with 100,000 word pieces of its own
        # in coyo-align, 0.1 of BERT's hidden states, as is transformers' default, and of the probabilities of
        # attention, which is left out
        model=AlignConfig(text=BertTextConfig(hidden_dropout=0.1), temperature_init=1.0),
        objectives={
            # "the sum of two losses", of which this objective is the mean
            "global_contrastive": GlobalContrastiveConfig(
                weight=2.0,
                label_smoothing=0.1,
                logit_scale_max=10.0,  # no clamp is mentioned
            )
        },
        data=DataConfig(
            sources={
                "pairs": SourceConfig(
                    kind="pair",
                    seed=0,
                    shards="shards/pairs",
                    max_tokens=64,
                    # "346 x 346, then random crop" of 289, and a flip; here the crop has (289 / 346)^2 of the
                    # area of a square image and its place is drawn
                    transform=ImageTransformConfig(
                        crop_scale=(0.6976, 0.6976), crop_ratio=(1.0, 1.0), horizontal_flip=0.5
                    ),
                )
            },
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=1_200_000,
            # 1,024 cores, each of which normalised its own 16 pairs
            global_batch_size=16_384,
            precision="bf16",  # not published
            activation_checkpointing=True,  # of the text tower; not published
            gradient_clipping=0.0,  # none is mentioned
        ),
        # published, with this rate and decay. In coyo-align all but the batch norms decays and takes steps
        # relative to its own norm (also temperature, biases and BERT's norms); here the batch norms do, too
        optimizer=LambConfig(
            lr=1e-3,
            betas=(0.9, 0.999),  # not published
            eps=1e-6,  # not published
            weight_decay=1e-5,
            decay_norm_and_bias=True,
        ),
        schedule=LinearScheduleConfig(warmup_steps=10_000, min_lr=0.0),
        checkpoint=CheckpointConfig(every_steps=5_000),  # not published
    )
