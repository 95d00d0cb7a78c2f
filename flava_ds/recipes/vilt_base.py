"""ViLT with its published hyper-parameters; comments mark what is recalled, silent, or different here."""

from flava_ds.config import (
    UNCHANGED,
    CheckpointConfig,
    Config,
    DataConfig,
    LinearScheduleConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.families.vilt.config import StreamConfig, ViltConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig
from flava_ds.optimizers.adamw import AdamWConfig

STEPS = 200_000
"""The longer of the two published runs; the other one has 100,000."""


def vilt_base() -> Config:
    """Returns ViLT-B/32 as published: 200,000 steps of 4,096 pairs.

    Set its data with --data.sources.pairs.shards: COCO, Visual Genome, SBU and Conceptual Captions, 4 million
    images. Source: the code of Kim et al. 2021 was read; what is marked as recalled is from the paper.
    """
    return Config(
        name="vilt_base",
        seed=0,  # as in the code
        # in the code, the LayerNorms of the text's embeddings and of the MLM head have an eps of 1e-12;
        # dropout is 0.1 as here, of embeddings, projections and both layers of the MLPs
        model=ViltConfig(image=StreamConfig(hidden_dropout=0.1)),
        objectives={
            # the code's decoder is not tied to the word embeddings
            "mmm_text": MultimodalMaskedTextConfig(
                mask_probability=0.15, whole_word=True, tied_decoder=False
            ),
            # the code replaces the images of half of each rank's batch; here each pair's text is replaced
            # with this probability
            "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
            "wpa": WordPatchAlignmentConfig(weight=0.1, beta=0.5, iterations=50),
        },
        data=DataConfig(
            sources={
                "pairs": SourceConfig(
                    kind="pair",
                    seed=0,
                    shards="shards/pairs",
                    max_tokens=40,
                    # no augmentation. The code keeps the ratio, 384 by up to 640 pixels, and draws 200 of the
                    # patches of larger images; here all are squares of 384 pixels, 144 patches
                    transform=UNCHANGED,
                )
            },
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=STEPS,
            global_batch_size=4096,
            precision="bf16",  # in the code: fp16
            activation_checkpointing=True,  # not published
            gradient_clipping=0.0,  # none in the code
        ),
        optimizer=AdamWConfig(
            lr=1e-4,
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=0.01,
            decay_norm_and_bias=False,
            decay_tokens_and_positions=True,  # the code exempts biases and norms alone
        ),
        schedule=LinearScheduleConfig(warmup_steps=STEPS // 10, min_lr=0.0),
        # published: the transformer, patches and positions start from ViT-B/32, trained on ImageNet-21k and
        # tuned at 384 pixels (recalled); here from random weights unless a converted model is given
        initial_weights=None,
        checkpoint=CheckpointConfig(every_steps=2_000),  # not published
    )
