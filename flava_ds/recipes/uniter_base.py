"""UNITER with its published hyper-parameters; comments mark what is recalled, silent, or different here."""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LinearScheduleConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.uniter.config import UniterConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.masked_region_features import MaskedRegionFeaturesConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig
from flava_ds.optimizers.adamw import AdamWConfig

CLASSES = 1601
"""The code averages the divergence over the classes, too."""


def uniter_base() -> Config:
    """Returns UNITER-base as published: 200,000 steps, 10 to 100 regions.

    Set its data with --data.sources.pairs.shards: COCO and Visual Genome, then also Conceptual Captions and
    SBU, whose regions Bottom-Up Attention found. Set data.vocabulary to the cased vocabulary of BERT-base.
    Source: the code of Chen et al. 2020 was read (in-domain, 8 GPUs); what is marked as recalled is from the
    paper.
    """
    return Config(
        name="uniter_base",
        seed=42,
        # published: 0.1 of hidden states, and of the probabilities of attention, which is left out
        model=UniterConfig(text=BertTextConfig(vocab_size=28996, hidden_dropout=0.1)),
        objectives={
            # the code draws one task for each micro-batch: ITM, MLM, MRFR and MRC-kl in the ratio 2 : 2 : 1 :
            # 1. Here every step has all of them, in three passes, weighted by these shares
            "itm": ImageTextMatchingConfig(weight=2 / 6, mismatch_probability=0.5),
            "wpa": WordPatchAlignmentConfig(weight=0.1 * 2 / 6, beta=0.5, iterations=50),
            "mmm_text": MultimodalMaskedTextConfig(
                weight=2 / 6, mask_probability=0.15, whole_word=False, tied_decoder=True
            ),
            "mrfr": MaskedRegionFeaturesConfig(weight=1 / 6, mask_probability=0.15),
            "mrc": MaskedRegionClassesConfig(weight=1 / 6 / CLASSES, mask_probability=0.15),
        },
        data=DataConfig(
            sources={
                "pairs": SourceConfig(
                    kind="pair",
                    seed=0,
                    shards="shards/pairs",
                    # published: captions of at most 60 tokens, [CLS] and [SEP] not counted; longer ones are
                    # dropped there and cut here
                    max_tokens=62,
                    regions_key="regions.safetensors",
                    max_regions=101,  # 10 to 100 of them above a confidence of 0.2, and the whole image
                )
            },
            vocabulary="bert_base_uncased",  # published: bert-base-cased, which is not part of this package
        ),
        training=TrainingConfig(
            total_steps=200_000,
            # published by positions: 10,240 for each of 8 GPUs and 2 micro-batches; about 53 make a pair
            global_batch_size=3072,
            gradient_accumulation_steps=2,
            precision="bf16",  # in the code: fp16
            activation_checkpointing=True,  # not published
            gradient_clipping=5.0,
        ),
        optimizer=AdamWConfig(
            lr=5e-5,
            betas=(0.9, 0.98),
            eps=1e-6,  # as in the code
            weight_decay=0.01,
            decay_norm_and_bias=False,
        ),
        schedule=LinearScheduleConfig(warmup_steps=10_000, min_lr=0.0),
        # published: words and transformer start from bert-base-cased; here from random weights unless a
        # converted model is given
        initial_weights=None,
        checkpoint=CheckpointConfig(every_steps=5_000),  # as often as the code validates
    )
