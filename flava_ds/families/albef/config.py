"""ALBEF's configuration: an image encoder, a text encoder, and layers that fuse the two by cross-attention.

Source: Li et al. 2021, "Align before Fuse: Vision and Language Representation Learning with Momentum
Distillation", and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from flava_ds.config.bounds import Above, AtLeast, AtMost, Between
from flava_ds.config.encoders import (
    BertTextConfig,
    EncoderConfig,
    Epsilon,
    ImageTextConfig,
    NormallyInitialized,
    Pixels,
    VisionEncoderConfig,
    Width,
    shape_with,
)
from flava_ds.config.objectives import in_use
from flava_ds.errors import ConfigError

Layers = Annotated[int, AtLeast(1), AtMost(1000)]
INSTEAD = {
    "itm": "makes its own pairs that do not match, with type itm_hard",
    **dict.fromkeys(
        ("global_contrastive", "local_contrastive", "sigmoid_contrastive"),
        "has no `logit_scale` and contrasts with type itc",
    ),
}
"""Objectives of other families, and what ALBEF has instead."""
MASKED = ("mmm_text", "mlm_distilled")
"""Types of objectives that read masked words beside the image."""


@dataclass(frozen=True, kw_only=True)
class AlbefImageConfig(VisionEncoderConfig):
    """A pre-norm ViT."""

    image_size: Pixels = 256
    layer_norm_eps: Epsilon = 1e-6


@dataclass(frozen=True, kw_only=True)
class AlbefTextConfig(BertTextConfig):
    """The first layers of a BERT, which read texts alone."""

    num_hidden_layers: Layers = 6


@dataclass(frozen=True, kw_only=True)
class AlbefConfig(ImageTextConfig, NormallyInitialized, type="albef"):
    """A ViT, the two halves of a BERT, of which the second attends to the image, and two projections.

    The defaults are published: 209,937,725 parameters with the heads of MLM and ITM.
    """

    image: AlbefImageConfig = field(default_factory=AlbefImageConfig)
    text: AlbefTextConfig = field(default_factory=AlbefTextConfig)
    fusion_layers: Layers = 6
    """Layers that fuse text and image; all else about their shape is the text encoder's."""
    projection_dim: Width = 256
    temperature_init: Annotated[float, Above(0), AtMost(1)] = 0.07
    """Divisor of similarities at the start; it is learned, between 0.001 and 0.5."""
    teacher_momentum: Annotated[float, Between(0, 1)] = 0.995
    """What the teacher, an average of the model's weights, keeps of itself at an update."""

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair"}
    folder: ClassVar[str | None] = "flava_ds.families.albef"
    views: ClassVar[tuple[str, ...]] = ("image", "text", "multimodal_masked", "multimodal")
    matching_view: ClassVar[str] = "multimodal"
    provides: ClassVar[frozenset[str]] = frozenset({"word_table", "hard_negatives", "teacher"})

    @property
    def fusion(self) -> EncoderConfig:
        """The shape of the layers that fuse."""
        return shape_with(self.text, self.fusion_layers)

    def shape_of(self, view: str) -> EncoderConfig:
        self.check_view(view)
        return {"image": self.image, "text": self.text}.get(view, self.fusion)

    def check(self, config: Any) -> None:
        super().check(config)
        self.refuse_masked_shares(config)
        self.refuse_codes(config)
        if self.image.hidden_size != self.text.hidden_size:
            raise ConfigError(
                f"model: image.hidden_size {self.image.hidden_size} is not text.hidden_size "
                f"{self.text.hidden_size}; the layers that fuse read both, so make them equal"
            )
        masked = [name for name, own in in_use(config.objectives).items() if own.type in MASKED]
        if len(masked) > 1:
            raise ConfigError(
                f"objectives.{masked[1]} masks words of pairs as objectives.{masked[0]} does, and the family "
                "'albef' masks a text once; remove one, or set its weight to 0"
            )
        for name, objective in in_use(config.objectives).items():
            if wanted := INSTEAD.get(objective.type or ""):
                raise ConfigError(f"objectives.{name} has type {objective.type}; the family 'albef' {wanted}")
