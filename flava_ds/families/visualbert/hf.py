"""VisualBERT in the layouts of transformers' VisualBertForPreTraining and VisualBertModel."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from flava_ds.config import Config
from flava_ds.config.encoders import BertTextConfig, RegionsConfig
from flava_ds.config.objectives import ObjectiveConfig, in_use
from flava_ds.errors import CheckpointError
from flava_ds.families.bert.hf import BLOCK, EMBEDDINGS, cleaned, split_qkv, tokenizer_files
from flava_ds.families.single_stream.config import single_stream_of
from flava_ds.families.single_stream.task import SingleStreamTask
from flava_ds.families.visualbert.config import VisualBertConfig
from flava_ds.layouts import Entry, Foreign, renamed, take, to_ours, to_theirs
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.next_sentence import SentenceImageConfig

_MODEL = "visual_bert."
_RENAMES = (
    (r"^model\.", _MODEL),
    (r"^visual_bert\.transformer\.blocks\.", "visual_bert.encoder.layer."),
    *BLOCK,
    *EMBEDDINGS,
    (r"^visual_bert\.regions\.", "visual_bert.embeddings.visual_projection."),
    (r"^visual_bert\.region_types\.", "visual_bert.embeddings.visual_token_type_embeddings."),
    (r"^visual_bert\.region_positions\.", "visual_bert.embeddings.visual_position_embeddings."),
    (r"^objectives\.mmm_text\.head\.dense\.", "cls.predictions.transform.dense."),
    (r"^objectives\.mmm_text\.head\.norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^objectives\.mmm_text\.head\.bias$", "cls.predictions.bias"),
    (r"^objectives\.sentence_image\.classifier\.", "cls.seq_relationship."),
)
_HEADS: dict[str, ObjectiveConfig] = {
    "mmm_text": MultimodalMaskedTextConfig(whole_word=False, tied_decoder=True),
    "sentence_image": SentenceImageConfig(),
}
"""The objectives whose heads VisualBertForPreTraining has."""
_SUPPORTED = {"hidden_act": "gelu", "bypass_transformer": False}


def entries(model: VisualBertConfig, *, heads: bool) -> tuple[Entry, ...]:
    """Builds the table between our names and transformers', with or without the heads."""
    config = Config(name="shapes", model=model, objectives=_HEADS)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in SingleStreamTask(config).state_dict().items()}
    return tuple(
        split_qkv(name, renamed(name, _RENAMES).removeprefix("" if heads else _MODEL), shape)
        for name, shape in shapes.items()
        if heads or name.startswith("model.")
    )


class VisualBertLayouts:
    """Implements flava_ds/layouts.py for VisualBERT."""

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns False: without its configuration, a state dict does not tell its number of heads."""
        return False

    def read(self, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str) -> Foreign:
        """Converts a VisualBertForPreTraining with both heads, or a VisualBertModel."""
        model = of_transformers(settings or {}, where)
        own = cleaned(tensors, where, table="visual_bert.embeddings.word_embeddings.weight")
        heads = any(name.startswith("cls.") for name in own)
        return Foreign(model, dict(_HEADS), to_ours(own, entries(model, heads=heads), where))

    def write(
        self, config: Config, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns VisualBertConfig's JSON and the tensors of VisualBertForPreTraining, or of VisualBertModel.

        The latter if the run does not train both heads as published, with a tied decoder.
        """
        masked = in_use(config.objectives).get("mmm_text")
        heads = _HEADS.keys() <= in_use(config.objectives).keys() and (
            isinstance(masked, MultimodalMaskedTextConfig) and masked.tied_decoder
        )
        model = single_stream_of(config)
        assert isinstance(model, VisualBertConfig)  # these are its layouts
        kept = {name: own for name, own in weights.items() if heads or name.startswith("model.")}
        text = dataclasses.asdict(model.text)
        dropout = text.pop("hidden_dropout")
        settings = {
            "model_type": "visual_bert",
            "architectures": ["VisualBertForPreTraining" if heads else "VisualBertModel"],
            "dtype": "float32",
            **text,
            **_SUPPORTED,
            "visual_embedding_dim": model.image.feature_size,
            "special_visual_initialize": True,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": model.load_tokenizer(config).pad_id,
        }
        return settings, to_theirs(kept, entries(model, heads=heads), "the run's checkpoint")

    def companions(self, config: Config) -> dict[str, Any]:
        """Returns the files of the run's tokenizer."""
        return tokenizer_files(config, single_stream_of(config).max_tokens)


LAYOUTS = VisualBertLayouts()


def of_transformers(raw: Mapping[str, Any], where: str) -> VisualBertConfig:
    """Builds our configuration from VisualBertConfig's JSON, whose default regions have 512 features."""
    for name, supported in _SUPPORTED.items():
        if raw.get(name, supported) != supported:
            raise CheckpointError(f"{where}: {name} is {raw[name]!r}; only {supported!r} is supported")
    size = raw.get("visual_embedding_dim", 512)
    return VisualBertConfig(text=take(BertTextConfig, raw), image=RegionsConfig(feature_size=size))
