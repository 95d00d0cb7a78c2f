"""UniT's configuration: encoders of images and texts, and one decoder for all tasks.

Source: Hu & Singh 2021, "UniT: Multimodal Multitask Learning with a Unified Transformer", and its code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flava_ds.config.data import SampleKind
from flava_ds.config.encoders import (
    BertTextConfig,
    ConvStemConfig,
    Dropped,
    EncoderConfig,
    Epsilon,
    NormallyInitialized,
)
from flava_ds.errors import ConfigError

TASKS: Mapping[str, SampleKind] = {
    "detection": "image",
    "genome": "image",
    "question": "pair",
    "entailment": "pair",
    "qnli": "text",
    "mnli": "text",
    "qqp": "text",
    "sst2": "text",
}
"""The tasks, and what their samples are: COCO and Visual Genome, VQAv2, SNLI-VE, and four of GLUE."""


@dataclass(frozen=True, kw_only=True)
class PositionedConfig(EncoderConfig):
    """A post-norm transformer with ReLU whose queries and keys get positions."""

    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    layer_norm_eps: Epsilon = 1e-5
    hidden_dropout: Dropped = 0.0
    """Probability that training drops an element of what attention and MLP add, and of the MLP's activations,
    drawn from the samples' seeds. Probabilities of attention are not dropped.
    """


def resnet50_dc5() -> ConvStemConfig:
    """Returns DETR's image tower: a ResNet-50 whose last stage is dilated, with frozen norms."""
    return ConvStemConfig(
        image_size=800,
        blocks=(3, 4, 6, 3),
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        dilated=True,
        frozen_stages=1,
        norm_group=None,
    )


@dataclass(frozen=True, kw_only=True)
class UnitConfig(NormallyInitialized, type="unit"):
    """Convolutions and a transformer over images, a BERT over texts, and a decoder that all tasks share."""

    image: ConvStemConfig = field(default_factory=resnet50_dc5)
    encoder: PositionedConfig = field(default_factory=PositionedConfig)
    """Over the cells of the last stage's grid."""
    text: BertTextConfig = field(default_factory=BertTextConfig)
    decoder: PositionedConfig = field(default_factory=lambda: PositionedConfig(hidden_size=768))
    first_word_only: tuple[str, ...] = ("entailment", "qnli", "mnli", "qqp", "sst2")
    """Tasks whose queries see the CLS alone of a text."""

    kinds: ClassVar[Mapping[str, str]] = TASKS
    folder: ClassVar[str | None] = "flava_ds.families.unit"
    views: ClassVar[tuple[str, ...]] = tuple(TASKS)

    def stacks(self, source: Any) -> Sequence[tuple[EncoderConfig, int]]:
        """The decoder's queries are taken to be no more than what they read."""
        cells = 0 if source.kind == "text" else self.image.num_patches
        words = 0 if source.kind == "image" else source.max_tokens
        found: list[tuple[EncoderConfig, int]] = [(self.decoder, cells + words)]
        found += [(self.encoder, 1 + cells)] if cells else []
        return found + ([(self.text, 1 + words)] if words else [])

    @property
    def drops(self) -> bool:
        """Whether training drops anything."""
        return any(part.hidden_dropout for part in (self.encoder, self.text, self.decoder))

    def samples_together(self, content: str) -> int:
        return 1 if content == "text" else self.image.norm_group or 1

    def shape_of(self, view: str) -> PositionedConfig:
        self.check_view(view)
        return self.decoder

    def check(self, config: Any) -> None:
        self.image.check("model.image")
        self.encoder.check("model.encoder")
        self.text.check("model.text")
        self.decoder.check("model.decoder")
        if self.encoder.hidden_size % 4:
            raise ConfigError(
                f"model.encoder.hidden_size is {self.encoder.hidden_size}; the sines and cosines of two axes "
                "need a multiple of 4"
            )
        if unknown := sorted({*self.first_word_only} - TASKS.keys()):
            raise ConfigError(
                f"model.first_word_only: no task is called '{unknown[0]}'; there are {', '.join(TASKS)}"
            )
        self.refuse_masked_shares(config)
