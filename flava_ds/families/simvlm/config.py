"""SimVLM's configuration: a convolutional stem, a transformer that reads and one that writes.

Source: Wang et al. 2022, "SimVLM: Simple Visual Language Model Pretraining with Weak Supervision", recalled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.encoders import ConvStemConfig, EncoderConfig, Epsilon, NormallyInitialized
from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SidesConfig:
    """The words, which both sides share with the classifier, and the positions of each side."""

    vocab_size: Annotated[int, AtLeast(1), AtMost(2**24)] = 32_000
    """Entries of the tokenizer's vocabulary, or more."""
    max_position_embeddings: Annotated[int, AtLeast(2), AtMost(2**20)] = 256
    """Maximum tokens of a text, and positions of either side."""


@dataclass(frozen=True, kw_only=True)
class StackConfig(EncoderConfig):
    """A pre-norm transformer, the one that reads or the one that writes."""

    layer_norm_eps: Epsilon = 1e-6


@dataclass(frozen=True, kw_only=True)
class SimvlmConfig(NormallyInitialized, type="simvlm"):
    """Encoder of patches and a text's prefix, and causal decoder of the rest.

    The defaults are SimVLM-base: 251,921,216 parameters.
    """

    image: ConvStemConfig = field(default_factory=ConvStemConfig)
    text: SidesConfig = field(default_factory=SidesConfig)
    encoder: StackConfig = field(default_factory=StackConfig)
    decoder: StackConfig = field(default_factory=StackConfig)

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair", "text": "text"}
    folder: ClassVar[str | None] = "flava_ds.families.simvlm"
    views: ClassVar[tuple[str, ...]] = ("suffix", "text_suffix")
    provides: ClassVar[frozenset[str]] = frozenset({"word_table"})

    def samples_together(self, content: str) -> int:
        return self.image.norm_group or 1 if content == "pair" else 1

    def shape_of(self, view: str) -> StackConfig:
        self.check_view(view)
        return self.decoder

    def check(self, config: Any) -> None:
        self.image.check("model.image")
        self.encoder.check("model.encoder")
        self.decoder.check("model.decoder")
        if self.encoder.hidden_size != self.decoder.hidden_size:
            raise ConfigError(
                f"model.decoder.hidden_size is {self.decoder.hidden_size}, model.encoder.hidden_size "
                f"{self.encoder.hidden_size}; both read the same word embeddings, so make them equal"
            )
        self.refuse_masked_shares(config)
