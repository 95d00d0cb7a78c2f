"""FLAVA's configuration: three encoders, four projections, and what batches of its kinds contain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from flava_ds.config.family import FamilyConfig
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.errors import ConfigError

if TYPE_CHECKING:
    from flava_ds.data.plan import BatchPlan
    from flava_ds.training.task import Task


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
class FlavaConfig(FamilyConfig, type="flava"):
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

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair", "image": "image", "text": "text"}

    @property
    def max_tokens(self) -> int:
        """The longest text that the model takes, special tokens included."""
        return self.text.max_position_embeddings

    def build(self, config: Any) -> Task:
        """Builds FLAVA with its objectives."""
        from flava_ds.families.flava.task import build_task

        return build_task(config)

    def plan(self, config: Any, source: Any) -> BatchPlan:
        """Says which pictures, texts and masks a batch of `source` has."""
        from flava_ds.families.flava.plans import plan

        return plan(config, source)

    def shape_of(self, view: str) -> ImageEncoderConfig | TextEncoderConfig | MultimodalEncoderConfig:
        """Returns the encoder's configuration of a view."""
        return getattr(self, view.removesuffix("_masked"))

    def check(self, config: Any) -> None:
        check_encoders(self)
        predicts = config.predicts_image_codes
        image, codebook = self.image, config.codebook
        wanted = image.grid_size * 2 ** (codebook.num_groups - 1)
        if predicts and codebook.image_size != wanted:
            raise ConfigError(
                f"codebook.image_size {codebook.image_size} gives a {codebook.grid_size} x {codebook.grid_size} grid of "
                f"codes, but the image encoder has {image.grid_size} x {image.grid_size} patches; use "
                f"codebook.image_size {wanted}"
            )


def flava_objectives(**changed: ObjectiveConfig) -> dict[str, ObjectiveConfig]:
    """Returns the six objectives of the paper by name, those in `changed` instead of the default's."""
    from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
    from flava_ds.objectives.itm import ImageTextMatchingConfig
    from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
    from flava_ds.objectives.masked_text import MaskedTextConfig, MultimodalMaskedTextConfig

    return {
        "global_contrastive": GlobalContrastiveConfig(),
        "mim": MaskedImageConfig(),
        "mlm": MaskedTextConfig(),
        "mmm_image": MultimodalMaskedImageConfig(),
        "mmm_text": MultimodalMaskedTextConfig(),
        "itm": ImageTextMatchingConfig(),
        **changed,
    }


def check_encoders(model: FlavaConfig) -> None:
    """Raises ConfigError naming the field of an encoder, the value and the way out."""
    encoders = {"model.image": model.image, "model.text": model.text, "model.multimodal": model.multimodal}
    for name, part in {**encoders, "model": model}.items():
        for entry in fields(part):
            value = getattr(part, entry.name)
            least = 0 if entry.name == "pad_token_id" else 1
            if type(value) is int and value < least:
                raise ConfigError(f"{name}.{entry.name} is {value}; it must be at least {least}")
            if type(value) is float and not 0 <= value < math.inf:
                raise ConfigError(f"{name}.{entry.name} is {value:g}; it must be a finite number of at least 0")
    for name, encoder in encoders.items():
        if encoder.hidden_size % encoder.num_attention_heads:
            raise ConfigError(f"{name}: hidden_size {encoder.hidden_size} does not divide by num_attention_heads {encoder.num_attention_heads}")
    image, text = model.image, model.text
    if image.image_size % image.patch_size:
        raise ConfigError(f"model.image: image_size {image.image_size} does not divide by patch_size {image.patch_size}")
    if not min(image.image_std) > 0:
        raise ConfigError(f"model.image.image_std is {image.image_std}; each must be above 0")
    if text.pad_token_id >= text.vocab_size:
        raise ConfigError(f"model.text.pad_token_id {text.pad_token_id} is none of model.text.vocab_size {text.vocab_size} entries")
    if image.num_channels != 3:
        raise ConfigError(f"model.image.num_channels is {image.num_channels}; pictures are read as RGB, so it must be 3")
