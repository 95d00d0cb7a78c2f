"""VisualBERT in the layouts of transformers' VisualBertForPreTraining and VisualBertModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flava_ds.config.encoders import BertTextConfig, RegionsConfig
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.families.bert_layouts import (
    BLOCK,
    EMBEDDINGS,
    BertLayouts,
    head_names,
    require,
    text_settings,
)
from flava_ds.families.visualbert.config import VisualBertConfig
from flava_ds.layouts import renamed, take
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.next_sentence import SentenceImageConfig

_RENAMES = (
    (r"^model\.", "visual_bert."),
    (r"^visual_bert\.transformer\.blocks\.", "visual_bert.encoder.layer."),
    *BLOCK,
    *EMBEDDINGS,
    (r"^visual_bert\.regions\.", "visual_bert.embeddings.visual_projection."),
    (r"^visual_bert\.region_types\.", "visual_bert.embeddings.visual_token_type_embeddings."),
    (r"^visual_bert\.region_positions\.", "visual_bert.embeddings.visual_position_embeddings."),
    *head_names("mmm_text", "sentence_image", "classifier"),
)
_SUPPORTED = {"hidden_act": "gelu", "bypass_transformer": False}


class OfVisualBert(BertLayouts):
    """VisualBERT's; regions of transformers' default configuration have 512 features."""

    model_type = "visual_bert"
    classes = ("VisualBertForPreTraining", "VisualBertModel")
    prefix = "visual_bert."
    heads: ClassVar[Mapping[str, ObjectiveConfig]] = {
        "mmm_text": MultimodalMaskedTextConfig(whole_word=False, tied_decoder=True),
        "sentence_image": SentenceImageConfig(),
    }

    def model_of(self, raw: Mapping[str, Any], where: str) -> VisualBertConfig:
        require(raw, _SUPPORTED, where)
        size = raw.get("visual_embedding_dim", 512)
        return VisualBertConfig(text=take(BertTextConfig, raw), image=RegionsConfig(feature_size=size))

    def settings_of(self, model: VisualBertConfig) -> dict[str, Any]:
        more = {"visual_embedding_dim": model.image.feature_size, "special_visual_initialize": True}
        return {**text_settings(model.text), **_SUPPORTED, **more}

    def their_name(self, name: str) -> str:
        return renamed(name, _RENAMES)


LAYOUTS = OfVisualBert()
