"""VinVL with its published hyper-parameters; comments mark what is recalled, silent, or different here."""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LinearScheduleConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import BertTextConfig, RegionsConfig
from flava_ds.families.vinvl.config import VinvlConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.tag_contrast import TagContrastConfig
from flava_ds.optimizers.adamw import AdamWConfig


def vinvl_base() -> Config:
    """Returns VinVL base as published: 2 million steps of at least 1,024 pairs.

    Set its data with --data.sources.pairs.shards: the published 8.85 million triplets are of COCO, Conceptual
    Captions, SBU, Flickr30K, GQA and OpenImages, with regions and tags of VinVL's detector. Source: the code
    of Zhang et al. 2021 was read; what is marked as recalled is from the paper.
    """
    return Config(
        name="vinvl_base",
        seed=0,  # not published
        # published: 0.1 of hidden states, and of the probabilities of attention, which is left out
        model=VinvlConfig(image=RegionsConfig(num_classes=1594), text=BertTextConfig(hidden_dropout=0.1)),
        objectives={
            # words of the caption and of the tags
            "mmm_text": MultimodalMaskedTextConfig(
                mask_probability=0.15, whole_word=False, tied_decoder=True
            ),
            "tag_contrast": TagContrastConfig(wrong_tags_probability=0.25, wrong_caption_probability=0.25),
        },
        data=DataConfig(
            sources={
                "pairs": SourceConfig(
                    kind="pair",
                    seed=0,
                    shards="shards/pairs",
                    max_tokens=35,
                    # published are also questions with answers in the place of captions with tags
                    regions_key="regions.safetensors",
                    max_regions=51,  # 50, and the whole image
                )
            },
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=2_000_000,
            global_batch_size=1024,  # recalled; 8 in the code's example
            precision="bf16",  # not published
            gradient_clipping=10.0,
        ),
        optimizer=AdamWConfig(
            lr=1e-4,  # recalled; 5e-5 in the code's example
            betas=(0.9, 0.999),  # the optimizer's defaults
            eps=1e-8,  # recalled
            weight_decay=0.01,
            decay_norm_and_bias=False,
        ),
        schedule=LinearScheduleConfig(warmup_steps=0, min_lr=0.0),
        # published: words and transformer start from bert-base-uncased; here from random weights unless a
        # converted model is given
        initial_weights=None,
        checkpoint=CheckpointConfig(every_steps=10_000),  # recalled
    )
