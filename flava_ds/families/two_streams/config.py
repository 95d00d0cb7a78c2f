"""Configurations of LXMERT and ViLBERT: a stream of words and one of the regions of an image.

Source: Tan and Bansal 2019, "LXMERT: Learning Cross-Modality Encoder Representations from Transformers"; Lu
et al. 2019, "ViLBERT: Pretraining Task-Agnostic Visiolinguistic Representations for Vision-and-Language
Tasks"; and their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.encoders import (
    BertTextConfig,
    EncoderConfig,
    RegionsConfig,
    RegionTextConfig,
    Width,
    shape_with,
)
from flava_ds.errors import ConfigError

Layers = Annotated[int, AtLeast(1), AtMost(1000)]
TEXT_VIEW, REGIONS_VIEW = "multimodal_masked", "regions_masked"


@dataclass(frozen=True, kw_only=True)
class TwoStreamConfig(RegionTextConfig):
    """What both families share: each stream has layers of its own, then both read each other in rounds."""

    folder: ClassVar[str | None] = "flava_ds.families.two_streams"
    views: ClassVar[tuple[str, ...]] = (TEXT_VIEW, REGIONS_VIEW)
    regions_view: ClassVar[str] = REGIONS_VIEW
    provides: ClassVar[frozenset[str]] = frozenset({"word_table", "pooled", "region_rows"})

    @property
    def rounds(self) -> int:
        """How often the streams read each other; a layer of each stream follows each time."""
        raise NotImplementedError

    @property
    def stream_shapes(self) -> tuple[EncoderConfig, EncoderConfig]:
        """The shapes of both streams, words first, with the layers that each has before the first round."""
        raise NotImplementedError

    def stacks(self, source: Any) -> Sequence[tuple[EncoderConfig, int]]:
        """Counts a round as two layers: one reads the other stream, one follows."""
        lengths = source.max_tokens, source.max_regions
        return [
            (shape_with(shape, shape.num_hidden_layers + 2 * self.rounds), length)
            for shape, length in zip(self.stream_shapes, lengths, strict=True)
        ]

    def shape_of(self, view: str) -> EncoderConfig:
        self.check_view(view)
        return self.stream_shapes[self.views.index(view)]


@dataclass(frozen=True, kw_only=True)
class LxmertTextConfig(BertTextConfig):
    """The layers that read words alone; all others have the same shape."""

    num_hidden_layers: Layers = 9


@dataclass(frozen=True, kw_only=True)
class LxmertRegionsConfig(RegionsConfig):
    """The layers that read regions alone."""

    num_hidden_layers: Layers = 5
    num_classes: Annotated[int, AtLeast(1), AtMost(2**24)] = 1600
    """Classes of the detector, without its background."""


@dataclass(frozen=True, kw_only=True)
class LxmertConfig(TwoStreamConfig, type="lxmert"):
    """Two streams of one width, then layers in which one attention serves both directions, and a pooler.

    The defaults are published: 207,936,768 parameters without heads.
    """

    text: LxmertTextConfig = field(default_factory=LxmertTextConfig)
    image: LxmertRegionsConfig = field(default_factory=LxmertRegionsConfig)
    cross_layers: Layers = 5
    """Layers in which words and regions read each other, after those of each alone."""

    layouts: ClassVar[str | None] = "flava_ds.families.two_streams.hf"

    @property
    def rounds(self) -> int:
        return self.cross_layers

    @property
    def stream_shapes(self) -> tuple[EncoderConfig, EncoderConfig]:
        layers = self.text.num_hidden_layers, self.image.num_hidden_layers
        return shape_with(self.text, layers[0]), shape_with(self.text, layers[1])


@dataclass(frozen=True, kw_only=True)
class VilbertRegionsConfig(RegionsConfig, EncoderConfig):
    """The stream of regions, with the layers after each co-attention."""

    hidden_size: Width = 1024
    num_hidden_layers: Layers = 6
    num_attention_heads: Annotated[int, AtLeast(1), AtMost(1024)] = 8
    intermediate_size: Width = 1024


@dataclass(frozen=True, kw_only=True)
class VilbertConfig(TwoStreamConfig, type="vilbert"):
    """Two streams of different widths; the last layers of each follow a co-attention layer. Two poolers.

    The defaults are published: 235,705,856 parameters without heads. The published code has 11,020,800 more
    in projections that nothing reads.
    """

    image: VilbertRegionsConfig = field(default_factory=VilbertRegionsConfig)
    co_attention_layers: Layers = 6
    """Co-attention layers; one layer of each stream follows each."""
    co_attention_heads: Annotated[int, AtLeast(1), AtMost(1024)] = 8
    """They must divide co_attention_size."""
    co_attention_size: Width = 1024
    """Width of all heads together, and of both pooled vectors."""

    reads_whole_image: ClassVar[bool] = True

    @property
    def pooled_views(self) -> tuple[str, ...]:
        return TEXT_VIEW, REGIONS_VIEW

    @property
    def pooled_size(self) -> int:
        return self.co_attention_size

    @property
    def rounds(self) -> int:
        return self.co_attention_layers

    @property
    def stream_shapes(self) -> tuple[EncoderConfig, EncoderConfig]:
        text, image = (
            shape_with(own, own.num_hidden_layers - self.rounds) for own in (self.text, self.image)
        )
        return text, image

    def check(self, config: Any) -> None:
        super().check(config)
        self.image.check("model.image")
        for name, own in (("text", self.text), ("image", self.image)):
            if own.num_hidden_layers < self.rounds:
                raise ConfigError(
                    f"model: {name}.num_hidden_layers {own.num_hidden_layers} is less than "
                    f"co_attention_layers {self.rounds}, each of which a layer of both streams follows; "
                    "raise it, or lower co_attention_layers"
                )
        if self.co_attention_size % self.co_attention_heads:
            raise ConfigError(
                f"model: co_attention_size {self.co_attention_size} is not divisible by co_attention_heads "
                f"{self.co_attention_heads}"
            )
