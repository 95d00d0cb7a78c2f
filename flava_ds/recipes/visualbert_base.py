"""VisualBERT with its published hyper-parameters; comments mark what is recalled, silent, or different."""

from flava_ds.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LinearScheduleConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.visualbert.config import VisualBertConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.next_sentence import SentenceImageConfig
from flava_ds.optimizers.adamw import AdamWConfig

IMAGES, EPOCHS, BATCH = 113_287, 10, 48
"""Images of COCO's split for training (Karpathy's, recalled)."""
STEPS = EPOCHS * IMAGES * 5 // BATCH
"""An epoch passes over every caption, five of an image."""


def visualbert_base() -> Config:
    """Returns VisualBERT's task-agnostic pre-training as published: 10 epochs of COCO.

    Set its data with --data.sources.pairs.shards: COCO with all captions of an image in one sample, whose
    regions a detector found. Source: the code of Li et al. 2019 was read (COCO pre-training for VQA); what is
    marked as recalled was not.
    """
    return Config(
        name="visualbert_base",
        seed=0,  # not published
        # published: 0.1 of hidden states, and of the probabilities of attention, which is left out
        model=VisualBertConfig(text=BertTextConfig(hidden_dropout=0.1)),
        objectives={
            "mmm_text": MultimodalMaskedTextConfig(
                mask_probability=0.15, whole_word=False, tied_decoder=True
            ),
            "sentence_image": SentenceImageConfig(random_probability=0.5),
        },
        data=DataConfig(
            sources={
                "pairs": SourceConfig(
                    kind="pair",
                    seed=0,
                    shards="shards/pairs",
                    caption_key="captions",
                    max_tokens=128,
                    regions_key="regions.safetensors",
                    max_regions=101,  # 100, and the whole image
                )
            },
            vocabulary="bert_base_uncased",
        ),
        training=TrainingConfig(
            total_steps=STEPS,
            global_batch_size=BATCH,
            precision="bf16",  # in the code: fp16
            gradient_clipping=1.0,
        ),
        optimizer=AdamWConfig(
            lr=5e-5,
            betas=(0.9, 0.999),
            eps=1e-6,  # recalled; the optimizer is BERT's, without Adam's bias correction
            weight_decay=0.01,  # recalled
            decay_norm_and_bias=False,
        ),
        schedule=LinearScheduleConfig(warmup_steps=STEPS // 10, min_lr=0.0),
        # published: words and transformer start from bert-base-uncased; here from random weights unless a
        # converted model is given
        initial_weights=None,
        checkpoint=CheckpointConfig(every_steps=10_000),  # not published
    )
