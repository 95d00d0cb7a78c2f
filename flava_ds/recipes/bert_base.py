"""BERT with its published hyper-parameters; comments mark what is recalled, silent, or different here."""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LinearScheduleConfig,
    SourceConfig,
    TrainingConfig,
    WeightChange,
)
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.bert.config import BertConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.objectives.next_sentence import NextSentenceConfig
from flava_ds.optimizers.adamw import AdamWConfig

SHORT_STEPS = 900_000
"""90 % of the steps."""


def bert_base() -> Config:
    """Returns BERT-base as published: a million steps of 256 texts, without dropout of attention.

    Set its data with --data.sources.short.shards and .long. (the same passages, cut to 128 and 512 tokens).
    Source: Devlin et al. 2019, sections 3 and 4 and appendix A.2, and its code; all values are recalled, not
    read again.
    """
    return Config(
        name="bert_base",
        seed=0,  # not published
        # published: 0.1 of hidden states, and of the probabilities of attention, which is left out
        model=BertConfig(text=BertTextConfig(hidden_dropout=0.1)),
        objectives={
            # the code draws a fixed number of tokens per text, at most 20 of 128; here each token is drawn
            "mlm": MaskedTextConfig(mask_probability=0.15, tied_decoder=True),
            "nsp": NextSentenceConfig(random_probability=0.5),
        },
        data=DataConfig(
            sources={
                "short": SourceConfig(kind="text", seed=0, shards="shards/text", max_tokens=128),
                "long": SourceConfig(kind="text", seed=1, shards="shards/text", max_tokens=512, weight=0.0),
            },
            # 128 tokens for 90 % of the steps, 512 for the rest; the 10 % of shorter texts are left out
            weight_changes=(WeightChange(step=SHORT_STEPS, weights={"short": 0.0, "long": 1.0}),),
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=1_000_000,
            global_batch_size=256,
            precision="bf16",  # published: fp32 on TPUs, whose products are bf16
            gradient_clipping=1.0,  # as in the code
        ),
        optimizer=AdamWConfig(
            lr=1e-4,
            betas=(0.9, 0.999),
            eps=1e-6,  # as in the code
            weight_decay=0.01,
            decay_norm_and_bias=False,  # as in the code, which also leaves out Adam's bias correction
        ),
        schedule=LinearScheduleConfig(warmup_steps=10_000, min_lr=0.0),
        checkpoint=CheckpointConfig(every_steps=10_000),  # not published
    )
