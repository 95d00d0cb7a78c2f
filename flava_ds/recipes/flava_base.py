"""The published model and its published hyper-parameters; comments mark where the paper is silent."""

from flava_ds.config import (
    CheckpointConfig,
    CodebookConfig,
    Config,
    CosineScheduleConfig,
    DataConfig,
    EngineConfig,
    ImageTransformConfig,
    ObjectiveConfig,
    SourceConfig,
    TrainingConfig,
)
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.families.flava.config import (
    FlavaConfig,
    FlavaTextConfig,
    MultimodalEncoderConfig,
    flava_objectives,
)
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
from flava_ds.objectives.masked_text import MaskedTextConfig, MultimodalMaskedTextConfig
from flava_ds.optimizers.adamw import AdamWConfig


def flava_base() -> Config:
    """Returns FLAVA as published: ViT-B/16 encoders, batch 8192.

    PMD, ImageNet and text are drawn with probability 0.70, 0.15 and 0.15. Set their shards with
    --data.sources.pmd.shards (pairs), .imagenet. (images) and .text. (text), and the codebook with
    --codebook-weights. Source: paper, Tables A.1 and A.2 and section 4.
    """
    return Config(
        name="flava_base",
        seed=0,  # not published
        model=published_model(),
        # DALL-E's; 112 / 8 = 224 / 16 = 14 codes per edge
        codebook=CodebookConfig(hidden_size=256, vocab_size=8192, image_size=112),
        objectives=published_objectives(),
        data=DataConfig(sources=published_sources(), vocabulary="bert_base_uncased"),
        training=TrainingConfig(
            # Pairs were drawn 150,000 times at probability 0.70; the total itself is not published.
            total_steps=214_286,
            global_batch_size=8192,
            # Published: fp16 except LayerNorm. bf16 needs no loss scaling; norms and losses are fp32 here.
            precision="bf16",
            gradient_clipping=0.0,  # not published
            # Published runs used FSDP, which gives idle parameters a zero gradient; 'zeros' reproduces that,
            # 'frozen' is plain torch.
            idle_parameters="frozen",
        ),
        optimizer=AdamWConfig(
            lr=1e-3,
            betas=(0.9, 0.999),
            weight_decay=0.1,
            eps=1e-8,  # not published
            decay_norm_and_bias=True,  # no exclusion is mentioned
        ),
        schedule=CosineScheduleConfig(
            warmup_steps=10_000,
            min_lr=0.0,  # "warmup_cosine"; its final value is not published
        ),
        # published: FSDP; 302M trainable parameters fit one device
        engine=EngineConfig(deepspeed_config="zero1"),
        # published: a zero-shot check for choosing a checkpoint every 8,000 updates
        checkpoint=CheckpointConfig(every_steps=8_000),
    )


def published_model() -> FlavaConfig:
    """Returns the encoders of Table A.1."""
    return FlavaConfig(
        image=VisionEncoderConfig(
            image_size=224,
            patch_size=16,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            layer_norm_eps=1e-12,  # not published; as in the released weights
        ),
        text=FlavaTextConfig(
            vocab_size=30_522,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            max_position_embeddings=512,  # not published; the size of the released table
        ),
        multimodal=MultimodalEncoderConfig(
            hidden_size=768, num_hidden_layers=6, num_attention_heads=12, intermediate_size=3072
        ),
        projection_dim=768,  # Table A.1 says 512, but the released weights are 768 wide
        logit_scale_init=2.6592,  # not published; CLIP's log(1 / 0.07)
    )


def published_objectives() -> dict[str, ObjectiveConfig]:
    """Returns the six losses with equal weights (no weights are published)."""
    return flava_objectives(
        # not published; the released code's clamp
        global_contrastive=GlobalContrastiveConfig(logit_scale_max=4.6052),
        # BEiT's block-wise masking is mentioned, its numbers are not: these are BEiT's.
        mim=MaskedImageConfig(num_masked_patches=75, min_patches_per_block=16, min_aspect_ratio=0.3),
        mmm_image=MultimodalMaskedImageConfig(
            num_masked_patches=75, min_patches_per_block=16, min_aspect_ratio=0.3
        ),
        mlm=MaskedTextConfig(mask_probability=0.15),  # 15 % is published, the 80 / 10 / 10 split is not
        # whole words: not published, the released code's choice
        mmm_text=MultimodalMaskedTextConfig(mask_probability=0.15, whole_word=True),
        itm=ImageTextMatchingConfig(mismatch_probability=0.1),  # not published; the released code's share
    )


def published_sources() -> dict[str, SourceConfig]:
    """Returns PMD, ImageNet-1k and CCNews + BookCorpus at the published probabilities."""
    # Augmentation is not published; the released code crops 0.9 to 1.0 of the area, nothing else.
    transform = ImageTransformConfig(crop_scale=(0.9, 1.0), crop_ratio=(0.75, 4 / 3))
    return {
        # 77: not published
        "pmd": SourceConfig(
            kind="pair", seed=0, shards="shards/pmd", weight=0.70, max_tokens=77, transform=transform
        ),
        "imagenet": SourceConfig(
            kind="image", seed=1, shards="shards/imagenet", weight=0.15, transform=transform
        ),
        # 512: not published
        "text": SourceConfig(kind="text", seed=2, shards="shards/text", weight=0.15, max_tokens=512),
    }
