"""LXMERT in the layouts of transformers' LxmertForPreTraining and LxmertModel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from flava_ds.config import Config
from flava_ds.config.objectives import ObjectiveConfig, in_use
from flava_ds.errors import CheckpointError
from flava_ds.families.bert.hf import BLOCK, EMBEDDINGS, cleaned, tokenizer_files
from flava_ds.families.two_streams.config import LxmertConfig, LxmertRegionsConfig, LxmertTextConfig
from flava_ds.families.two_streams.task import TwoStreamTask
from flava_ds.layouts import Entry, Foreign, renamed, take, to_ours, to_theirs
from flava_ds.objectives.detected_regions import DetectedRegionsConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MaskedTextConfig, MultimodalMaskedTextConfig

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
    (r"^objectives\.mmm_text\.head\.dense\.", "cls.predictions.transform.dense."),
    (r"^objectives\.mmm_text\.head\.norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^objectives\.mmm_text\.head\.bias$", "cls.predictions.bias"),
    (r"^objectives\.itm\.head\.", "cls.seq_relationship."),
    (r"^objectives\.detected_regions\.head\.dense\.", "obj_predict_head.transform.dense."),
    (r"^objectives\.detected_regions\.head\.norm\.", "obj_predict_head.transform.LayerNorm."),
    (r"^objectives\.detected_regions\.head\.classes\.", "obj_predict_head.decoder_dict.obj."),
    (r"^objectives\.detected_regions\.head\.features\.", "obj_predict_head.decoder_dict.feat."),
)
_HEADS: dict[str, ObjectiveConfig] = {
    "mmm_text": MultimodalMaskedTextConfig(tied_decoder=True, whole_word=False),
    "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
    "detected_regions": DetectedRegionsConfig(),
}
"""The objectives whose heads LxmertForPreTraining has, beside those of answers and of attributes."""
_UNUSED = ("answer_head.", "obj_predict_head.decoder_dict.attr.")
"""Tensors without a place here: no objective reads answers or attributes."""
_SPLIT = {"qkv": ("query", "key", "value"), "key_value": ("key", "value")}
_SUPPORTED = {"hidden_act": "gelu", "visual_pos_dim": 4}
_EPS = 1e-12
"""Of every LayerNorm in transformers' code, which has no setting for it."""


def entries(model: LxmertConfig, *, heads: bool) -> tuple[Entry, ...]:
    """Builds the table between our names and transformers', with or without heads."""
    config = Config(name="shapes", model=model, objectives=_HEADS)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in TwoStreamTask(config).state_dict().items()}
    found = []
    for name, shape in shapes.items():
        theirs = renamed(name, _RENAMES)
        if heads:
            found.append(_entry(name, theirs, shape))
        elif name.startswith("model."):
            found.append(_entry(name, theirs.removeprefix("lxmert."), shape))
    return tuple(found)


def _entry(ours: str, theirs: str, shape: tuple[int, ...]) -> Entry:
    for joint, parts in _SPLIT.items():
        if f".{joint}." in theirs:
            names = tuple(theirs.replace(f".{joint}.", f".{part}.") for part in parts)
            return Entry(ours, names, shape, (shape[0] // len(parts), *shape[1:]))
    return Entry(ours, (theirs,), shape, shape)


class LxmertLayouts:
    """Implements flava_ds/layouts.py for LXMERT."""

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns False: without its configuration, a state dict does not tell its number of heads."""
        return False

    def read(self, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str) -> Foreign:
        """Converts a LxmertForPreTraining, without its heads of answers and attributes, or a LxmertModel."""
        model = of_transformers(settings or {}, where)
        own = cleaned(tensors, where, table="lxmert.embeddings.word_embeddings.weight")
        dropped = tuple(sorted(name for name in own if name.startswith(_UNUSED)))
        own = {name: tensor for name, tensor in own.items() if name not in dropped}
        heads = any(name.startswith("cls.") for name in own)
        # A LxmertModel alone brings no heads; a run that starts from it draws them anew.
        return Foreign(model, dict(_HEADS), to_ours(own, entries(model, heads=heads), where), dropped=dropped)

    def write(
        self, config: Config, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns LxmertConfig's JSON and the tensors of LxmertForPreTraining, or of LxmertModel.

        The latter if the run does not train all three heads as published. Raises: CheckpointError for an eps
        that transformers' code does not have.
        """
        model, used = cast(LxmertConfig, config.model), in_use(config.objectives)
        if model.text.layer_norm_eps != _EPS:
            raise CheckpointError(
                f"model.text.layer_norm_eps is {model.text.layer_norm_eps:g}, but transformers' LXMERT has "
                f"{_EPS:g} in its code; a model with another one cannot be exported"
            )
        masked = used.get("mmm_text")
        heads = {name: own.type for name, own in _HEADS.items()}.items() <= {
            name: own.type for name, own in used.items()
        }.items() and (isinstance(masked, MaskedTextConfig) and masked.tied_decoder)
        kept = {name: own for name, own in weights.items() if heads or name.startswith("model.")}
        table = entries(model, heads=heads)
        return transformers_settings(config, heads=heads), to_theirs(kept, table, "the run's checkpoint")

    def companions(self, config: Config) -> dict[str, Any]:
        """Returns the files of the run's tokenizer."""
        return tokenizer_files(config, config.model.max_tokens)


LAYOUTS = LxmertLayouts()


def transformers_settings(config: Config, *, heads: bool) -> dict[str, Any]:
    """Translates a configuration into LxmertConfig's JSON, without answers and attributes."""
    model = cast(LxmertConfig, config.model)
    text = model.text
    return {
        "model_type": "lxmert",
        "architectures": ["LxmertForPreTraining" if heads else "LxmertModel"],
        "dtype": "float32",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "num_attention_heads": text.num_attention_heads,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "type_vocab_size": text.type_vocab_size,
        "l_layers": text.num_hidden_layers,
        "x_layers": model.cross_layers,
        "r_layers": model.image.num_hidden_layers,
        "visual_feat_dim": model.image.feature_size,
        "num_object_labels": model.image.num_classes,
        **_SUPPORTED,
        "task_qa": False,
        "visual_attr_loss": False,
        "hidden_dropout_prob": text.hidden_dropout,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": model.load_tokenizer(config).pad_id,
    }


def of_transformers(raw: Mapping[str, Any], where: str) -> LxmertConfig:
    """Builds our configuration from LxmertConfig's JSON; the defaults of both are the published model.

    Dropout is ignored: it has no effect on what a trained model computes, and runs set their own.
    """
    for name, supported in _SUPPORTED.items():
        if raw.get(name, supported) != supported:
            raise CheckpointError(f"{where}: {name} is {raw[name]!r}; only {supported!r} is supported")
    # their num_hidden_layers repeats the three numbers
    shape = {name: value for name, value in raw.items() if name != "num_hidden_layers"}
    regions = {
        "num_hidden_layers": raw.get("r_layers"),
        "feature_size": raw.get("visual_feat_dim"),
        "num_classes": raw.get("num_object_labels"),
    }
    return LxmertConfig(
        text=take(
            LxmertTextConfig, shape | {"num_hidden_layers": raw.get("l_layers"), "layer_norm_eps": _EPS}
        ),
        image=take(LxmertRegionsConfig, regions),
        cross_layers=raw.get("x_layers", LxmertConfig.cross_layers),
    )
