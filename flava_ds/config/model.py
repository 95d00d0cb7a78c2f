"""The part of the configuration that shapes the model, the image codebook and the objectives; `flava_ds.config` offers it as its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """ViT over patches (paper, Table A.1)."""

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Per channel, on the [0, 1] scale; CLIP's, as both published implementations use."""
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def grid_size(self) -> int:
        """Patches along one edge."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches in one image."""
        return self.grid_size**2


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """BERT embeddings in front of the same pre-norm transformer."""

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True, kw_only=True)
class MultimodalEncoderConfig:
    """Transformer over [CLS_M | image | text]; adds no position or modality embedding."""

    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The three encoders and the four projections between and above them."""

    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    multimodal: MultimodalEncoderConfig = field(default_factory=MultimodalEncoderConfig)
    projection_dim: int = 768
    """Width of the contrastive space. 768 loads the released weights; the paper's table says 512."""
    logit_scale_init: float = 2.6592
    """log(1 / 0.07)."""
    poolers: bool = False
    """Keep the three dense + tanh poolers that no pre-training loss uses (frozen), so that Hugging Face checkpoints pass through whole."""
    initializer_range: float = 0.02


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """DALL-E's discrete VAE, the image tokenizer of MIM and MMM-image."""

    hidden_size: int = 256
    num_groups: int = 4
    num_blocks_per_group: int = 2
    num_channels: int = 3
    vocab_size: int = 8192
    image_size: int = 112
    """Pixels along one edge of the codebook's view; the grid is image_size / 2**(num_groups - 1)."""
    decoder_init_size: int = 128

    @property
    def grid_size(self) -> int:
        """Codes along one edge."""
        return self.image_size // 2 ** (self.num_groups - 1)


@dataclass(frozen=True, kw_only=True)
class GlobalContrastiveConfig:
    """Image-text contrastive loss over the batch of all ranks."""

    weight: float = 1.0
    logit_scale_max: float = 4.6052
    """Upper end of the clamp of the log-space scale (100.003); the lower end is 0."""


@dataclass(frozen=True, kw_only=True)
class MaskedImageConfig:
    """Masked image modelling: BEiT's block-wise masking, targets from the codebook."""

    weight: float = 1.0
    num_masked_patches: int = 75
    """Upper limit for one image (75 of 196 as published code has it)."""
    min_patches_per_block: int = 16
    min_aspect_ratio: float = 0.3
    attempts_per_block: int = 10


@dataclass(frozen=True, kw_only=True)
class MaskedTextConfig:
    """Masked language modelling: BERT's 15 % with 80/10/10 replacement."""

    weight: float = 1.0
    mask_probability: float = 0.15
    mask_token_share: float = 0.8
    random_token_share: float = 0.1
    whole_word: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageTextMatchingConfig:
    """Image-text matching: a caption is replaced by another sample's with the given probability."""

    weight: float = 1.0
    mismatch_probability: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """All objectives. A weight of 0 removes the objective with its head and its forward pass."""

    global_contrastive: GlobalContrastiveConfig = field(default_factory=GlobalContrastiveConfig)
    mim: MaskedImageConfig = field(default_factory=MaskedImageConfig)
    mlm: MaskedTextConfig = field(default_factory=MaskedTextConfig)
    mmm_image: MaskedImageConfig = field(default_factory=MaskedImageConfig)
    mmm_text: MaskedTextConfig = field(default_factory=lambda: MaskedTextConfig(whole_word=True))
    itm: ImageTextMatchingConfig = field(default_factory=ImageTextMatchingConfig)


def check_model(model: ModelConfig, codebook: CodebookConfig) -> None:
    """Raises ConfigError naming the field, the value and the way out."""
    encoders = {"model.image": model.image, "model.text": model.text, "model.multimodal": model.multimodal}
    for name, part in {**encoders, "model": model, "codebook": codebook}.items():
        for entry in fields(part):
            value = getattr(part, entry.name)
            if type(value) is int and value < (0 if entry.name == "pad_token_id" else 1):
                raise ConfigError(f"{name}.{entry.name} is {value}; it must be at least {0 if entry.name == 'pad_token_id' else 1}")
            if type(value) is float and not 0 <= value < math.inf:
                raise ConfigError(f"{name}.{entry.name} is {value:g}; it must be a finite number of at least 0")
    for name, encoder in encoders.items():
        if encoder.hidden_size % encoder.num_attention_heads:
            raise ConfigError(f"{name}: hidden_size {encoder.hidden_size} does not divide by num_attention_heads {encoder.num_attention_heads}")
    if model.image.image_size % model.image.patch_size:
        raise ConfigError(f"model.image: image_size {model.image.image_size} does not divide by patch_size {model.image.patch_size}")
    if not min(model.image.image_std) > 0:
        raise ConfigError(f"model.image.image_std is {model.image.image_std}; each must be above 0")
    if model.text.pad_token_id >= model.text.vocab_size:
        raise ConfigError(f"model.text.pad_token_id {model.text.pad_token_id} is none of model.text.vocab_size {model.text.vocab_size} entries")
    for name, channels in (("model.image", model.image.num_channels), ("codebook", codebook.num_channels)):
        if channels != 3:
            raise ConfigError(f"{name}.num_channels is {channels}; pictures are read as RGB, so it must be 3")


def check_masks(objectives: ObjectivesConfig) -> None:
    """Raises ConfigError for the first objective in use whose masks would be empty or impossible."""
    for name in ("mim", "mmm_image"):
        mask: MaskedImageConfig = getattr(objectives, name)
        for field_name in ("num_masked_patches", "min_patches_per_block", "attempts_per_block"):
            if mask.weight and getattr(mask, field_name) < 1:
                raise ConfigError(f"objectives.{name}.{field_name} is {getattr(mask, field_name)}; it must be at least 1, or set objectives.{name}.weight 0")
        if mask.weight and mask.min_patches_per_block > mask.num_masked_patches:
            raise ConfigError(
                f"objectives.{name}: a block of min_patches_per_block {mask.min_patches_per_block} does not fit into "
                f"num_masked_patches {mask.num_masked_patches}"
            )
        if mask.weight and not 0 < mask.min_aspect_ratio <= 1:
            raise ConfigError(f"objectives.{name}.min_aspect_ratio is {mask.min_aspect_ratio:g}; it must lie above 0 and at most at 1")
    for name in ("mlm", "mmm_text"):
        shares: MaskedTextConfig = getattr(objectives, name)
        if shares.mask_token_share + shares.random_token_share > 1 + 1e-9:
            raise ConfigError(
                f"objectives.{name}: mask_token_share {shares.mask_token_share:g} and random_token_share {shares.random_token_share:g} are more than 1 together"
            )
