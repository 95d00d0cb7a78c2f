"""VL-BERT's configuration: one BERT over words that see the whole image, regions, and texts alone.

Source: Su et al. 2020, "VL-BERT: Pre-training of Generic Visual-Linguistic Representations", and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flava_ds.config.encoders import BertTextConfig
from flava_ds.errors import ConfigError
from flava_ds.families.single_stream.config import Reading, SingleStreamConfig


@dataclass(frozen=True, kw_only=True)
class VlbertConfig(SingleStreamConfig, type="vlbert"):
    """A BERT of three token types, whose words and regions have a visual and a linguistic part.

    The defaults are VL-BERT base: 108,896,256 parameters in the transformer and what the paper calls its
    embeddings, without the map of regions, masks and heads.
    """

    text: BertTextConfig = field(default_factory=lambda: BertTextConfig(type_vocab_size=3))
    """The one transformer, with the embeddings of words. Of its token types the third is for regions."""

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair", "text": "text"}
    readings: ClassVar[Mapping[str, Reading]] = {
        "multimodal_masked": Reading(ids="input_ids_masked", hides_regions=True)
    }
    views: ClassVar[tuple[str, ...]] = tuple(readings)
    matching_view: ClassVar[str] = "multimodal_masked"
    regions_view: ClassVar[str] = "multimodal_masked"
    provides: ClassVar[frozenset[str]] = frozenset({"word_table", "region_rows", "encode_texts"})
    network: ClassVar[str] = "flava_ds.families.vlbert.model:Vlbert"
    reads_whole_image: ClassVar[bool] = True

    @property
    def max_tokens(self) -> int:
        """Positions behind a text are its regions' and [END]'s."""
        return self.text.max_position_embeddings - 2

    def check(self, config: Any) -> None:
        super().check(config)
        if self.text.type_vocab_size < 3:
            raise ConfigError(
                f"model.text.type_vocab_size is {self.text.type_vocab_size}; regions need a third token type"
            )
