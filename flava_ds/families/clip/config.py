"""CLIP's configuration: an image tower, a causal text tower, and a projection of each into one space.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", and its
code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.encoders import (
    Dropped,
    EncoderConfig,
    Epsilon,
    ImageTextConfig,
    Pixels,
    TextEncoderConfig,
    VisionEncoderConfig,
    Width,
)

if TYPE_CHECKING:
    from flava_ds.data.plan import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig(VisionEncoderConfig):
    """ViT with a LayerNorm before the first block and after the last, and no bias on the patch projection."""

    patch_size: Pixels = 32
    layer_norm_eps: Epsilon = 1e-5
    patch_dropout: Dropped = 0.0
    """Share of an image's patches that training leaves out, others in each epoch; evaluation sees all. FLIP
    (Li et al. 2022) leaves out 0.5 or 0.75, and trains a last percent of its steps on all.
    """

    @property
    def present_patches(self) -> int:
        """Patches of an image that training sees."""
        return max(1, int(self.num_patches * (1 - self.patch_dropout)))


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig(TextEncoderConfig):
    """Causal transformer; the last token's state represents the text."""

    vocab_size: Annotated[int, AtLeast(1), AtMost(2**24)] = 49_408
    max_position_embeddings: Annotated[int, AtLeast(1), AtMost(2**20)] = 77
    hidden_size: Width = 512
    num_attention_heads: Annotated[int, AtLeast(1), AtMost(1024)] = 8
    intermediate_size: Width = 2048
    layer_norm_eps: Epsilon = 1e-5


@dataclass(frozen=True, kw_only=True)
class ClipConfig(ImageTextConfig, type="clip"):
    """Two towers and two projections without bias."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    projection_dim: Width = 512
    logit_scale_init: Annotated[float, AtLeast(0), AtMost(10)] = 2.6592
    """log(1 / 0.07)."""
    activation: Literal["gelu", "quick_gelu"] = "quick_gelu"
    """Activation of both towers; quick_gelu, x * sigmoid(1.702 x), is the published one. open_clip uses gelu
    (erf) for models whose names do not end in -quickgelu.
    """

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair"}
    folder: ClassVar[str | None] = "flava_ds.families.clip"
    ignores_padding: ClassVar[bool] = True
    layouts: ClassVar[str | None] = "flava_ds.families.clip.hf"
    views: ClassVar[tuple[str, ...]] = ("image", "text")

    def load_tokenizer(self, config: Any) -> Tokenizer:
        """Loads CLIP's byte-pair vocabulary, or the one that data.vocabulary names."""
        from flava_ds.data.tokenizer import load_tokenizer

        return load_tokenizer(config.data.vocabulary).fitting(self.text.vocab_size)

    def stacks(self, source: Any) -> Sequence[tuple[EncoderConfig, int]]:
        return (self.image, 1 + self.image.present_patches), (self.text, source.max_tokens)

    def shape_of(self, view: str) -> EncoderConfig:
        self.check_view(view)
        return getattr(self, view)

    def check(self, config: Any) -> None:
        super().check(config)
        self.refuse_masked_shares(config)


def vit_b_32(**changed: Any) -> ClipConfig:
    """Returns CLIP's ViT-B/32: 151,277,313 parameters."""
    return ClipConfig(**changed)


def vit_b_16(**changed: Any) -> ClipConfig:
    """Returns CLIP's ViT-B/16: 149,620,737 parameters."""
    return ClipConfig(**{"image": ImageTowerConfig(patch_size=16), **changed})


def vit_l_14(**changed: Any) -> ClipConfig:
    """Returns CLIP's ViT-L/14: 427,616,513 parameters."""
    image = ImageTowerConfig(
        patch_size=14, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    text = TextTowerConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    return ClipConfig(**{"image": image, "text": text, "projection_dim": 768, **changed})
