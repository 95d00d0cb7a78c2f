"""VL-BERT with its published hyper-parameters; comments mark what is recalled, silent, or different here."""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LinearScheduleConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.vlbert.config import VlbertConfig
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.masked_text import JointMaskedTextConfig
from flava_ds.optimizers.adamw import AdamWConfig

PAIRS, EPOCHS, BATCH = 3_300_000, 10, 128
"""Pairs of Conceptual Captions (recalled), and how many of them a step has on 4 GPUs of 32 each."""
STEPS = 2 * EPOCHS * PAIRS // BATCH
"""A published step has pairs and texts, here steps of one and of the other take turns."""


def vlbert_base() -> Config:
    """Returns VL-BERT base as published: 10 epochs of Conceptual Captions.

    Set its data with --data.sources.pairs.shards and --data.sources.text.shards: Conceptual Captions with the
    regions that a detector found, and BooksCorpus with Wikipedia. Source: the code of Su et al. 2020 was read
    (precomputed features, fp32); what is marked as recalled is from the paper.
    """
    return Config(
        name="vlbert_base",
        seed=12345,
        # published: 0.1 of hidden states, and of the probabilities of attention, which is left out
        model=VlbertConfig(text=BertTextConfig(type_vocab_size=3, hidden_dropout=0.1)),
        objectives={
            # the code draws each word with this probability, here words are drawn until they cover it
            "joint_mlm": JointMaskedTextConfig(mask_probability=0.15, whole_word=True, tied_decoder=True),
            "mrc": MaskedRegionClassesConfig(mask_probability=0.15, hidden_share=0.9, loss="cross_entropy"),
        },
        data=DataConfig(
            sources={
                "pairs": SourceConfig(
                    kind="pair",
                    seed=0,
                    shards="shards/pairs",
                    # published: 64 positions for words and regions together, of which the larger part is cut
                    max_tokens=64,
                    regions_key="regions.safetensors",
                    max_regions=101,  # recalled: 10 to 100, and the whole image
                    # published: boxes are mirrored with probability 0.5
                ),
                # published: texts have neither [CLS] nor [SEP], and each is filled with the lines after it up
                # to 64 tokens; here they begin and end as captions do and are as long as in the shards
                "text": SourceConfig(kind="text", seed=1, shards="shards/text", max_tokens=64),
            },
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=STEPS,
            global_batch_size=BATCH,
            precision="bf16",  # in the code: fp32, and fp16 in another configuration
            gradient_clipping=10.0,
        ),
        optimizer=AdamWConfig(
            lr=1e-7 * 256,  # in the code for each sample of a batch of pairs and texts
            betas=(0.9, 0.999),
            eps=1e-6,  # recalled
            weight_decay=1e-4,
            decay_norm_and_bias=True,  # recalled
        ),
        schedule=LinearScheduleConfig(warmup_steps=2 * 16_000, min_lr=0.0),
        # published: words and transformer start from bert-base-uncased; here from random weights unless a
        # converted model is given
        initial_weights=None,
        checkpoint=CheckpointConfig(every_steps=10_000),  # published: each epoch
    )
