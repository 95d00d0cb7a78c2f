"""ViLBERT with its published hyper-parameters; comments mark what is recalled, silent, or different here."""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LinearScheduleConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.two_streams.config import VilbertConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.optimizers.adamw import AdamWConfig

STEPS = 60_500
"""10 epochs of the 3.1 million pairs of Conceptual Captions (recalled) that the authors could fetch."""


def vilbert_base() -> Config:
    """Returns ViLBERT as published: 60,500 steps of 512 pairs.

    Set its data with --data.sources.pairs.shards: Conceptual Captions, with 10 to 36 regions of an image.
    Source: the code of Lu et al. 2019 was read; what is marked as recalled is from the paper, or from the
    optimizer that the code takes.
    """
    return Config(
        name="vilbert_base",
        seed=42,  # as in the code
        # published: 0.1 of hidden states, and of the probabilities of attention, which is left out
        model=VilbertConfig(text=BertTextConfig(hidden_dropout=0.1)),
        objectives={
            "mmm_text": MultimodalMaskedTextConfig(
                mask_probability=0.15, whole_word=False, tied_decoder=True
            ),
            # the code predicts words of texts that do not match, too, and so does this
            "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
            # the code masks no region of some images, and divides by zero if there is none in a batch; here
            # at least one of each image is masked
            "mrc": MaskedRegionClassesConfig(mask_probability=0.15, hidden_share=0.9),
        },
        data=DataConfig(
            sources={
                "pairs": SourceConfig(
                    kind="pair",
                    seed=0,
                    shards="shards/regions",
                    max_tokens=36,
                    regions_key="regions.safetensors",
                    max_regions=37,  # the whole image, which in the code is the mean of the others, included
                )
            },
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=STEPS,
            global_batch_size=512,
            precision="bf16",  # in the code: fp32, or fp16 by a flag
            gradient_clipping=1.0,  # recalled: the code clips each tensor by itself
        ),
        optimizer=AdamWConfig(
            # in the code a tenth of it for the weights that come from BERT
            lr=1e-4,
            # recalled: the code's BertAdam, which leaves out the bias correction
            betas=(0.9, 0.999),
            eps=1e-6,
            weight_decay=0.01,
            # as the code does from random weights; from BERT it decays gains and biases and nothing else,
            # which looks like an exchange
            decay_norm_and_bias=False,
        ),
        schedule=LinearScheduleConfig(warmup_steps=STEPS // 10, min_lr=0.0),
        # published: the words' stream starts from BERT-base; here from random weights unless a converted
        # model is given
        initial_weights=None,
        checkpoint=CheckpointConfig(every_steps=2_000),  # not published
    )
