"""ALBEF with its published hyper-parameters; comments mark what is recalled, silent, or different here."""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    CosineScheduleConfig,
    DataConfig,
    ImageTransformConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.families.albef.config import AlbefConfig, AlbefTextConfig
from flava_ds.objectives.distilled_text import DistilledTextConfig
from flava_ds.objectives.hard_matching import HardMatchingConfig
from flava_ds.objectives.momentum_contrastive import MomentumContrastiveConfig
from flava_ds.optimizers.adamw import AdamWConfig

EPOCH = 5_100_000 // 512
"""Steps of an epoch: 5.1 million pairs of 4 million images (recalled), 512 a step."""


def albef_base() -> Config:
    """Returns ALBEF as published: 30 epochs of batches of 512 pairs, without RandAugment and dropout of
    attention.

    Set its data with --data.sources.pairs.shards: COCO, Visual Genome, SBU and Conceptual Captions, 4 million
    images. Source: the code of Li et al. 2021 was read; what is marked as recalled is from the paper.
    """
    return Config(
        name="albef_base",
        seed=42,  # as in the code
        # in the code, 0.1 of the words' hidden states, the teacher's too, and of the probabilities of
        # attention, which is left out; nothing of the image encoder
        model=AlbefConfig(text=AlbefTextConfig(hidden_dropout=0.1), teacher_momentum=0.995),
        objectives={
            # in the code, columns are a rank's own batch and the queue; here the batch of all ranks
            "itc": MomentumContrastiveConfig(queue_size=65_536, distillation=0.4, distillation_steps=EPOCH),
            # in the code, negatives are of a rank's own 64 pairs, drawn by the student's rows against the
            # teacher's columns; here of all 512, by the teacher's on both sides
            "itm": HardMatchingConfig(),
            # the code also masks [SEP]
            "mlm": DistilledTextConfig(
                mask_probability=0.15, whole_word=False, distillation=0.4, distillation_steps=EPOCH
            ),
        },
        data=DataConfig(
            sources={
                "pairs": SourceConfig(
                    kind="pair",
                    seed=0,
                    shards="shards/pairs",
                    max_tokens=25,
                    # the code adds RandAugment, two operations of magnitude 7
                    transform=ImageTransformConfig(
                        crop_scale=(0.2, 1.0), crop_ratio=(0.75, 4 / 3), horizontal_flip=0.5
                    ),
                )
            },
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=30 * EPOCH,
            global_batch_size=512,
            precision="bf16",  # in the code: fp32
            activation_checkpointing=True,  # not published
            gradient_clipping=0.0,  # none in the code
        ),
        optimizer=AdamWConfig(
            lr=1e-4,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=0.02,
            decay_norm_and_bias=False,
            decay_tokens_and_positions=True,  # the code exempts biases and norms alone
        ),
        # the code warms up from 1e-5 instead of 0, and falls once an epoch
        schedule=CosineScheduleConfig(warmup_steps=2_000, min_lr=1e-5),
        # published: the image encoder starts from DeiT, the text encoder and the layers that fuse from BERT;
        # here from random weights unless a converted model is given
        initial_weights=None,
        checkpoint=CheckpointConfig(every_steps=2_000),  # not published
    )
