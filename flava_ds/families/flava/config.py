"""FLAVA's configuration: three encoders, four projections and six objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.encoders import (
    EncoderConfig,
    ImageTextConfig,
    NormallyInitialized,
    TextEncoderConfig,
    Width,
)
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FlavaTextConfig(TextEncoderConfig):
    """BERT embeddings followed by a pre-norm transformer."""

    type_vocab_size: Annotated[int, AtLeast(1), AtMost(1024)] = 2
    """Rows of the token-type table; only the first is used."""
    pad_token_id: Annotated[int, AtLeast(0), AtMost(2**24)] = 0

    def check(self, name: str) -> None:
        super().check(name)
        if self.pad_token_id >= self.vocab_size:
            raise ConfigError(
                f"{name}.pad_token_id {self.pad_token_id} is none of {name}.vocab_size {self.vocab_size} "
                "entries"
            )


@dataclass(frozen=True, kw_only=True)
class MultimodalEncoderConfig(EncoderConfig):
    """Transformer over [CLS_M | image | text]; adds no position or modality embeddings."""

    num_hidden_layers: Annotated[int, AtLeast(1), AtMost(1000)] = 6


@dataclass(frozen=True, kw_only=True)
class FlavaConfig(ImageTextConfig, NormallyInitialized, type="flava"):
    """Three encoders, two projections into the fused space and two into the contrastive space."""

    text: FlavaTextConfig = field(default_factory=FlavaTextConfig)
    multimodal: MultimodalEncoderConfig = field(default_factory=MultimodalEncoderConfig)
    projection_dim: Width = 768
    """Width of the contrastive space. The released weights have 768; the paper's table says 512."""
    logit_scale_init: Annotated[float, AtLeast(0), AtMost(10)] = 2.6592
    """Initial log of the contrastive scale: log(1 / 0.07)."""
    relative_positions: bool = False
    """Give each layer of the image encoder a learned bias for every head and offset between two patches, as
    BEiT has, whose released weights need it. Not in the paper.
    """
    poolers: bool = False
    """Keep the three dense + tanh poolers that no pre-training loss uses (frozen), so that Hugging Face
    checkpoints round-trip completely.
    """

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair", "image": "image", "text": "text"}
    folder: ClassVar[str | None] = "flava_ds.families.flava"
    ignores_padding: ClassVar[bool] = True
    views: ClassVar[tuple[str, ...]] = (
        "image",
        "image_masked",
        "text",
        "text_masked",
        "multimodal",
        "multimodal_masked",
    )
    layouts: ClassVar[str | None] = "flava_ds.families.flava.hf"

    @property
    def num_patches(self) -> int:
        return self.image.num_patches

    def shape_of(self, view: str) -> EncoderConfig:
        self.check_view(view)
        return getattr(self, view.removesuffix("_masked"))

    def check(self, config: Any) -> None:
        super().check(config)
        self.multimodal.check("model.multimodal")
        predicts = config.predicts_image_codes
        image, codebook = self.image, config.codebook
        wanted = image.grid_size * 2 ** (codebook.num_groups - 1)
        if predicts and codebook.image_size != wanted:
            raise ConfigError(
                f"codebook.image_size {codebook.image_size} gives a {codebook.grid_size} x "
                f"{codebook.grid_size} grid of codes, but the image encoder has {image.grid_size} x "
                f"{image.grid_size} patches; use codebook.image_size {wanted}"
            )


def flava_objectives(**changed: ObjectiveConfig) -> dict[str, ObjectiveConfig]:
    """Returns the paper's six objectives by name; `changed` replaces defaults."""
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
