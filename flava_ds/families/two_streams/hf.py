"""LXMERT in the layouts of transformers' LxmertForPreTraining and LxmertModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.errors import CheckpointError
from flava_ds.families.bert_layouts import (
    BLOCK,
    EMBEDDINGS,
    BertLayouts,
    head_names,
    require,
    text_settings,
)
from flava_ds.families.two_streams.config import LxmertConfig, LxmertRegionsConfig, LxmertTextConfig
from flava_ds.layouts import Entry, renamed, take
from flava_ds.objectives.detected_regions import DetectedRegionsConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig

_STREAM = (
    (r"\.attention\.qkv\.", "_self_att.self.qkv."),
    (r"\.attention\.output\.", "_self_att.output.dense."),
    (r"\.attention_norm\.", "_self_att.output.LayerNorm."),
    (r"\.mlp_up\.", "_inter.dense."),
    (r"\.mlp_down\.", "_output.dense."),
    (r"\.mlp_norm\.", "_output.LayerNorm."),
)
"""Names within a round's block of one stream."""
_RENAMES = (
    (r"^model\.", "lxmert."),
    (r"^lxmert\.region_embeddings\.features\.", "lxmert.encoder.visn_fc.visn_fc."),
    (r"^lxmert\.region_embeddings\.boxes\.", "lxmert.encoder.visn_fc.box_fc."),
    (r"^lxmert\.region_embeddings\.feature_norm\.", "lxmert.encoder.visn_fc.visn_layer_norm."),
    (r"^lxmert\.region_embeddings\.box_norm\.", "lxmert.encoder.visn_fc.box_layer_norm."),
    *EMBEDDINGS,
    (r"^lxmert\.streams\.text\.blocks\.", "lxmert.encoder.layer."),
    (r"^lxmert\.streams\.regions\.blocks\.", "lxmert.encoder.r_layers."),
    (r"^lxmert\.streams\.rounds\.", "lxmert.encoder.x_layers."),
    (r"\.exchange\.both\.attention\.output\.", ".visual_attention.output.dense."),
    (r"\.exchange\.both\.attention\.", ".visual_attention.att."),
    (r"\.exchange\.both\.attention_norm\.", ".visual_attention.output.LayerNorm."),
    *((rf"\.text{ours}", f".lang{theirs}") for ours, theirs in _STREAM),
    *((rf"\.regions{ours}", f".visn{theirs}") for ours, theirs in _STREAM),
    (r"\.attention\.qkv\.", ".attention.self.qkv."),
    *BLOCK,
    *head_names("mmm_text", "itm", "head"),
    (r"^objectives\.detected_regions\.head\.dense\.", "obj_predict_head.transform.dense."),
    (r"^objectives\.detected_regions\.head\.norm\.", "obj_predict_head.transform.LayerNorm."),
    (r"^objectives\.detected_regions\.head\.classes\.", "obj_predict_head.decoder_dict.obj."),
    (r"^objectives\.detected_regions\.head\.features\.", "obj_predict_head.decoder_dict.feat."),
)
_SPLIT = {"qkv": ("query", "key", "value"), "key_value": ("key", "value")}
_SUPPORTED = {"hidden_act": "gelu", "visual_pos_dim": 4}
_EPS = 1e-12
"""Of every LayerNorm in transformers' code, which has no setting for it."""


class OfLxmert(BertLayouts):
    """LXMERT's, without the heads of answers and attributes, whose labels no objective here reads. The
    defaults of transformers' configuration are the published model, as ours are.
    """

    model_type = "lxmert"
    classes = ("LxmertForPreTraining", "LxmertModel")
    prefix = "lxmert."
    heads: ClassVar[Mapping[str, ObjectiveConfig]] = {
        "mmm_text": MultimodalMaskedTextConfig(tied_decoder=True, whole_word=False),
        "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
        "detected_regions": DetectedRegionsConfig(),
    }
    unused = ("answer_head.", "obj_predict_head.decoder_dict.attr.")
    tuned = (  # LxmertForQuestionAnswering
        "answer_head.logit_fc.0",
        nn.GELU(),
        "answer_head.logit_fc.2",
        "answer_head.logit_fc.3",
    )
    tuned_eps = _EPS

    def model_of(self, raw: Mapping[str, Any], where: str) -> LxmertConfig:
        require(raw, _SUPPORTED, where)
        # their num_hidden_layers repeats the three numbers
        shape = {name: value for name, value in raw.items() if name != "num_hidden_layers"}
        text = shape | {"num_hidden_layers": raw.get("l_layers"), "layer_norm_eps": _EPS}
        regions = {
            "num_hidden_layers": raw.get("r_layers"),
            "feature_size": raw.get("visual_feat_dim"),
            "num_classes": raw.get("num_object_labels"),
        }
        return LxmertConfig(
            text=take(LxmertTextConfig, text),
            image=take(LxmertRegionsConfig, regions),
            cross_layers=raw.get("x_layers", LxmertConfig.cross_layers),
        )

    def settings_of(self, model: LxmertConfig) -> dict[str, Any]:
        """Raises: CheckpointError for an eps that transformers' code does not have."""
        if model.text.layer_norm_eps != _EPS:
            raise CheckpointError(
                f"model.text.layer_norm_eps is {model.text.layer_norm_eps:g}, but transformers' LXMERT has "
                f"{_EPS:g} in its code; a model with another one cannot be exported"
            )
        text = text_settings(model.text)
        del text["layer_norm_eps"]
        return {
            "l_layers": text.pop("num_hidden_layers"),
            **text,
            "x_layers": model.cross_layers,
            "r_layers": model.image.num_hidden_layers,
            "visual_feat_dim": model.image.feature_size,
            "num_object_labels": model.image.num_classes,
            **_SUPPORTED,
            "task_qa": False,
            "visual_attr_loss": False,
        }

    def their_name(self, name: str) -> str:
        return renamed(name, _RENAMES)

    def entry(self, ours: str, theirs: str, shape: tuple[int, ...]) -> Entry:
        for joint, parts in _SPLIT.items():
            if f".{joint}." in theirs:
                names = tuple(theirs.replace(f".{joint}.", f".{part}.") for part in parts)
                return Entry(ours, names, shape, (shape[0] // len(parts), *shape[1:]))
        return Entry(ours, (theirs,), shape, shape)


LAYOUTS = OfLxmert()
