"""BERT in the layouts of transformers' BertForPreTraining and BertModel."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from flava_ds.config import Config
from flava_ds.config.encoders import BertTextConfig
from flava_ds.config.objectives import ObjectiveConfig, in_use
from flava_ds.data.tokenizer import SPECIAL_TOKENS
from flava_ds.errors import CheckpointError
from flava_ds.families.bert.config import BertConfig, bert_of
from flava_ds.families.bert.task import BertTask
from flava_ds.layouts import Entry, Foreign, renamed, take, to_ours, to_theirs
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.objectives.next_sentence import NextSentenceConfig

BLOCK = (
    (r"\.attention\.output\.", ".attention.output.dense."),
    (r"\.attention_norm\.", ".attention.output.LayerNorm."),
    (r"\.mlp_norm\.", ".output.LayerNorm."),
    (r"\.mlp_up\.", ".intermediate.dense."),
    (r"\.mlp_down\.", ".output.dense."),
)
"""Names within a post-norm block."""
EMBEDDINGS = (
    (r"embeddings\.words\.", "embeddings.word_embeddings."),
    (r"embeddings\.positions\.", "embeddings.position_embeddings."),
    (r"embeddings\.token_types\.", "embeddings.token_type_embeddings."),
    (r"embeddings\.norm\.", "embeddings.LayerNorm."),
)
"""Names within BERT's embeddings."""
_RENAMES = (
    (r"^model\.", "bert."),
    (r"^bert\.transformer\.blocks\.", "bert.encoder.layer."),
    *BLOCK,
    *EMBEDDINGS,
    (r"^objectives\.mlm\.head\.dense\.", "cls.predictions.transform.dense."),
    (r"^objectives\.mlm\.head\.norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^objectives\.mlm\.head\.bias$", "cls.predictions.bias"),
    (r"^objectives\.nsp\.classifier\.", "cls.seq_relationship."),
)
_HEADS: dict[str, ObjectiveConfig] = {
    "mlm": MaskedTextConfig(tied_decoder=True),
    "nsp": NextSentenceConfig(),
}
"""The objectives whose heads BertForPreTraining has."""
WORD_TABLE = "bert.embeddings.word_embeddings.weight"
_SUPPORTED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


def entries(model: BertConfig, *, heads: bool) -> tuple[Entry, ...]:
    """Builds the table between our names and transformers', with or without the heads of MLM and NSP."""
    config = Config(name="shapes", model=model, objectives=_HEADS)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in BertTask(config).state_dict().items()}
    found = []
    for name, shape in shapes.items():
        theirs = renamed(name, _RENAMES)
        if not heads:
            if not name.startswith("model."):
                continue
            theirs = theirs.removeprefix("bert.")
        found.append(split_qkv(name, theirs, shape))
    return tuple(found)


def split_qkv(ours: str, theirs: str, shape: tuple[int, ...], within: str = "self") -> Entry:
    """Returns the entry of a tensor: transformers' blocks keep q, k and v apart, in BERT within `self`."""
    if ".attention.qkv." not in theirs:
        return Entry(ours, (theirs,), shape, shape)
    parts = ("query", "key", "value")
    names = tuple(theirs.replace(".attention.qkv.", f".attention.{within}.{part}.") for part in parts)
    return Entry(ours, names, shape, (shape[0] // 3, *shape[1:]))


class BertLayouts:
    """Implements flava_ds/layouts.py for BERT."""

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns False: without its configuration, a state dict does not tell its number of heads."""
        return False

    def read(self, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str) -> Foreign:
        """Converts a BertForPreTraining with both heads, or a BertModel."""
        model, own = of_transformers(settings or {}, where), cleaned(tensors, where)
        heads = any(name.startswith("cls.") for name in own)
        weights = to_ours(own, entries(model, heads=heads), where)
        # A BertModel alone brings no heads; a run that starts from it draws them anew.
        return Foreign(model, dict(_HEADS), weights)

    def write(
        self, config: Config, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns BertConfig's JSON and the tensors of BertForPreTraining, or of BertModel.

        The latter if the run does not train both heads as published: MLM with a tied decoder, and NSP.
        """
        masked = in_use(config.objectives).get("mlm")
        heads = _HEADS.keys() <= in_use(config.objectives).keys() and (
            isinstance(masked, MaskedTextConfig) and masked.tied_decoder
        )
        kept = {name: own for name, own in weights.items() if heads or name.startswith("model.")}
        table = entries(bert_of(config), heads=heads)
        return transformers_settings(config, heads=heads), to_theirs(kept, table, "the run's checkpoint")

    def companions(self, config: Config) -> dict[str, Any]:
        """Returns the files of the run's tokenizer."""
        return tokenizer_files(config, bert_of(config).max_tokens)


LAYOUTS = BertLayouts()


def cleaned(tensors: Mapping[str, Tensor], where: str, *, table: str = WORD_TABLE) -> dict[str, Tensor]:
    """Drops constants and repeated tensors, and modernises the oldest names (LayerNorm.gamma and beta).

    `table` names the word embeddings.

    Raises: CheckpointError if a decoder differs from the word embeddings, to which it is tied here.
    """
    renames = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
    found = {
        renamed(name, renames): tensor
        for name, tensor in tensors.items()
        if not name.endswith("position_ids")
    }
    tied = {"cls.predictions.decoder.weight": table, "cls.predictions.decoder.bias": "cls.predictions.bias"}
    for twin, name in tied.items():
        repeated = found.pop(twin, None)
        if repeated is not None and name in found and not torch.equal(repeated, found[name]):
            raise CheckpointError(f"{where}: '{twin}' differs from '{name}', to which this model ties it")
    return found


def transformers_settings(config: Config, *, heads: bool) -> dict[str, Any]:
    """Translates a configuration into BertConfig's JSON."""
    model = bert_of(config)
    text = dataclasses.asdict(model.text)
    dropout = text.pop("hidden_dropout")
    return {
        "model_type": "bert",
        "architectures": ["BertForPreTraining" if heads else "BertModel"],
        "dtype": "float32",
        **text,
        **_SUPPORTED,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": model.load_tokenizer(config).pad_id,
    }


def of_transformers(raw: Mapping[str, Any], where: str) -> BertConfig:
    """Builds our configuration from BertConfig's JSON; the defaults of both are BERT-base.

    Dropout is ignored: it has no effect on what a trained model computes, and runs set their own.
    """
    for name, supported in _SUPPORTED.items():
        if raw.get(name, supported) != supported:
            raise CheckpointError(f"{where}: {name} is {raw[name]!r}; only {supported!r} is supported")
    return BertConfig(text=take(BertTextConfig, raw))


def tokenizer_files(config: Any, max_tokens: int) -> dict[str, Any]:
    """Returns the files of transformers' BertTokenizer for the run's WordPiece vocabulary."""
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    words = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": max_tokens,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    }
    vocabulary = config.model.load_tokenizer(config).file.read_text(encoding="utf-8")
    return {"tokenizer_config.json": words, "vocab.txt": vocabulary}
