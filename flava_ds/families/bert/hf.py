"""BERT in the layouts of transformers' BertForPreTraining and BertModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flava_ds.config.encoders import BertTextConfig
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.families.bert.config import BertConfig
from flava_ds.families.bert_layouts import (
    BLOCK,
    EMBEDDINGS,
    BertLayouts,
    head_names,
    require,
    text_settings,
)
from flava_ds.layouts import renamed, take
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.objectives.next_sentence import NextSentenceConfig

_RENAMES = (
    (r"^model\.", "bert."),
    (r"^bert\.transformer\.blocks\.", "bert.encoder.layer."),
    *BLOCK,
    *EMBEDDINGS,
    *head_names("mlm", "nsp", "classifier"),
)
_SUPPORTED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


class OfBert(BertLayouts):
    """BERT's; the defaults of transformers' configuration are BERT-base, as ours are."""

    model_type = "bert"
    classes = ("BertForPreTraining", "BertModel")
    prefix = "bert."
    heads: ClassVar[Mapping[str, ObjectiveConfig]] = {
        "mlm": MaskedTextConfig(tied_decoder=True),
        "nsp": NextSentenceConfig(),
    }

    tuned = ("classifier",)  # BertForSequenceClassification

    def model_of(self, raw: Mapping[str, Any], where: str) -> BertConfig:
        require(raw, _SUPPORTED, where)
        return BertConfig(text=take(BertTextConfig, raw))

    def settings_of(self, model: BertConfig) -> dict[str, Any]:
        return {**text_settings(model.text), **_SUPPORTED}

    def their_name(self, name: str) -> str:
        return renamed(name, _RENAMES)


LAYOUTS = OfBert()
