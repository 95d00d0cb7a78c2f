"""ViLT's configuration: words and patches in one pre-norm transformer.

Source: Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision",
and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from flava_ds.config.bounds import AtLeast, AtMost, Share
from flava_ds.config.encoders import (
    BertTextConfig,
    Deviation,
    Dropped,
    Epsilon,
    NormallyInitialized,
    Pixels,
    VisionEncoderConfig,
)
from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StreamConfig(VisionEncoderConfig):
    """The one transformer, a ViT, with the images that it reads; words join its patches."""

    image_size: Pixels = 384
    patch_size: Pixels = 32
    image_mean: tuple[Share, Share, Share] = (0.5, 0.5, 0.5)
    """Per channel, on the [0, 1] scale."""
    image_std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    """Per channel, on the same scale."""
    layer_norm_eps: Epsilon = 1e-6
    """Of every LayerNorm. The published code has 1e-6 in the ViT and 1e-12 in the parts from BERT;
    transformers has 1e-12 everywhere.
    """
    max_patches: Annotated[int, AtLeast(1), AtMost(2**20)] = 200
    """Maximum patches of an image, at any size; the published code draws so many of a larger image's."""
    hidden_dropout: Dropped = 0.0
    """Probability that training drops an element of the embeddings of words and patches, of what attention
    and MLP add, and of the MLP's activations, drawn from the samples' seeds. Probabilities of attention are
    not dropped.
    """

    def check(self, name: str) -> None:
        super().check(name)
        if self.num_patches > self.max_patches:
            raise ConfigError(
                f"{name}: image_size {self.image_size} gives {self.num_patches} patches, more than "
                f"max_patches {self.max_patches}; lower image_size or raise max_patches"
            )


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """BERT's embeddings of words, of the stream's width."""

    vocab_size: Annotated[int, AtLeast(1), AtMost(2**24)] = 30522
    """Entries of the tokenizer's vocabulary."""
    max_position_embeddings: Annotated[int, AtLeast(1), AtMost(2**20)] = 40
    """Maximum tokens of a text."""
    type_vocab_size: Annotated[int, AtLeast(2), AtMost(1024)] = 2
    """Rows of the table of segments; only the first is used."""


@dataclass(frozen=True, kw_only=True)
class ViltConfig(NormallyInitialized, type="vilt"):
    """One stream of words and patches, whose embeddings tell the modality, and a pooler.

    The defaults are ViLT-B/32: 111,595,008 parameters, 135,660,092 with the heads of MLM and ITM.
    """

    image: StreamConfig = field(default_factory=StreamConfig)
    text: WordsConfig = field(default_factory=WordsConfig)
    modality_types: Annotated[int, AtLeast(2), AtMost(1024)] = 2
    """Rows of the table of modalities: words, patches, and further images when fine-tuning on several."""

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair"}
    folder: ClassVar[str | None] = "flava_ds.families.vilt"
    layouts: ClassVar[str | None] = "flava_ds.families.vilt.hf"
    views: ClassVar[tuple[str, ...]] = ("multimodal_masked", "multimodal")
    matching_view: ClassVar[str] = "multimodal"
    provides: ClassVar[frozenset[str]] = frozenset({"word_table", "pooled", "alignment_rows"})

    @property
    def words(self) -> BertTextConfig:
        """What BERT's embeddings need: the words, and the stream's width and eps."""
        return BertTextConfig(
            vocab_size=self.text.vocab_size,
            max_position_embeddings=self.text.max_position_embeddings,
            type_vocab_size=self.text.type_vocab_size,
            hidden_size=self.image.hidden_size,
            layer_norm_eps=self.image.layer_norm_eps,
        )

    def shape_of(self, view: str) -> StreamConfig:
        self.check_view(view)
        return self.image

    def check(self, config: Any) -> None:
        self.image.check("model.image")
        self.refuse_masked_shares(config)
        self.refuse_codes(config)
