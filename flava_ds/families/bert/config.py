"""BERT's configuration: one post-norm encoder of texts.

Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flava_ds.config.encoders import BertTextConfig, NormallyInitialized


@dataclass(frozen=True, kw_only=True)
class BertConfig(NormallyInitialized, type="bert"):
    """Token, position and segment embeddings, a post-norm transformer, and a pooler.

    The defaults are BERT-base: 109,482,240 parameters, 110,106,428 with the heads of MLM and NSP.
    """

    text: BertTextConfig = field(default_factory=BertTextConfig)

    kinds: ClassVar[Mapping[str, str]] = {"text": "text"}
    folder: ClassVar[str | None] = "flava_ds.families.bert"
    layouts: ClassVar[str | None] = "flava_ds.families.bert.hf"
    views: ClassVar[tuple[str, ...]] = ("text", "text_masked")
    provides: ClassVar[frozenset[str]] = frozenset({"word_table", "pooled"})

    @property
    def image_size(self) -> int:
        return 0

    def shape_of(self, view: str) -> BertTextConfig:
        self.check_view(view)
        return self.text

    def check(self, config: Any) -> None:
        self.text.check("model.text")
