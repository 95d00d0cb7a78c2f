"""ViLT in the layouts of transformers' ViltForMaskedLM and ViltModel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flava_ds.config import Config
from flava_ds.config.objectives import ObjectiveConfig, in_use
from flava_ds.families.bert_layouts import (
    EMBEDDINGS,
    named_by_type,
    pixel_settings,
    require,
    require_squares,
    split_qkv,
    tell_left_out,
    text_settings,
    tokenizer_files,
)
from flava_ds.families.vilt.config import StreamConfig, ViltConfig, WordsConfig
from flava_ds.families.vilt.task import ViltTask
from flava_ds.layouts import Entry, Foreign, Layouts, renamed, take, to_ours, to_theirs, tuned_head
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.weightless import shapes_of

_RENAMES = (
    (r"^model\.", "vilt."),
    *((pattern, f"embeddings.text_{replacement}") for pattern, replacement in EMBEDDINGS),
    (r"^vilt\.patch_embedding\.", "vilt.embeddings.patch_embeddings.projection."),
    (r"^vilt\.cls_token$", "vilt.embeddings.cls_token"),
    (r"^vilt\.positions$", "vilt.embeddings.position_embeddings"),
    (r"^vilt\.modality_types\.", "vilt.embeddings.token_type_embeddings."),
    (r"^vilt\.transformer\.blocks\.", "vilt.encoder.layer."),
    (r"\.attention_norm\.", ".layernorm_before."),
    (r"\.attention\.output\.", ".attention.output.dense."),
    (r"\.mlp_norm\.", ".layernorm_after."),
    (r"\.mlp_up\.", ".intermediate.dense."),
    (r"\.mlp_down\.", ".output.dense."),
    (r"^vilt\.final_norm\.", "vilt.layernorm."),
    (r"^objectives\.mmm_text\.head\.dense\.", "mlm_score.transform.dense."),
    (r"^objectives\.mmm_text\.head\.norm\.", "mlm_score.transform.LayerNorm."),
    (r"^objectives\.mmm_text\.head\.decoder\.", "mlm_score.decoder."),
    (r"^objectives\.mmm_text\.head\.bias$", "mlm_score.decoder.bias"),
)
_DECODER, _WORDS = "mlm_score.decoder.weight", "vilt.embeddings.text_embeddings.word_embeddings.weight"
_ANSWERS = ("classifier.0", "classifier.1", nn.GELU(), "classifier.3")
_SUPPORTED = {"hidden_act": "gelu", "qkv_bias": True}


def heads_of(tied: bool) -> dict[str, ObjectiveConfig]:
    """Returns the objective whose head ViltForMaskedLM has."""
    return {"mmm_text": MultimodalMaskedTextConfig(tied_decoder=tied)}


def entries(model: ViltConfig, heads: Mapping[str, ObjectiveConfig] | None = None) -> tuple[Entry, ...]:
    """Builds the table between our names and transformers', with the head of MLM or of the bare model."""
    config = Config(name="shapes", model=model, objectives=dict(heads or {}))
    image, found = model.image, []
    for name, shape in shapes_of(lambda: ViltTask(config)).items():
        theirs = renamed(name, _RENAMES)
        entry = split_qkv(name, theirs if heads else theirs.removeprefix("vilt."), shape, "attention")
        if name == "model.patch_embedding.weight":
            their_shape = (shape[0], image.num_channels, image.patch_size, image.patch_size)
            entry = dataclasses.replace(entry, their_shape=their_shape)
        elif name in ("model.cls_token", "model.positions"):
            ones = (1,) * (3 - len(shape))  # theirs have three axes
            entry = dataclasses.replace(entry, their_shape=(*ones, *shape))
        found.append(entry)
    return tuple(found)


class ViltLayouts(Layouts):
    """Implements flava_ds/layouts.py for ViLT."""

    def read(self, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str) -> Foreign:
        """Converts a ViltForMaskedLM, a ViltForQuestionAnswering, or a ViltModel.

        A decoder that differs from the word embeddings, as in the published code, becomes one of its own.
        """
        model = of_transformers(settings or {}, where)
        own = {
            # the bias had another name
            "mlm_score.decoder.bias" if name == "mlm_score.bias" else name: tensor
            for name, tensor in tensors.items()
            if not name.endswith(("position_ids", "token_type_ids"))
        }
        heads: dict[str, ObjectiveConfig] = {}
        head = tuned_head(own, _ANSWERS, settings or {}, where)
        if head is not None:
            own = {name.removeprefix("vilt."): tensor for name, tensor in own.items()}
        if any(name.startswith("mlm_score.") for name in own):
            tied = _DECODER not in own or torch.equal(own[_DECODER], own.get(_WORDS, own[_DECODER]))
            heads = heads_of(tied)
            own = {name: tensor for name, tensor in own.items() if not (tied and name == _DECODER)}
        # A ViltModel alone brings no head; a run that starts from it draws it anew.
        weights = to_ours(own, entries(model, heads), where)
        return Foreign(model, heads or heads_of(False), weights, head=head)

    def write(
        self, config: Config, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns ViltConfig's JSON and the tensors of ViltForMaskedLM if the run's decoder is tied, which it
        always is there, otherwise of ViltModel. The matching head has no place in either. A warning names
        what is left out.
        """
        config, weights = named_by_type(config, weights)
        masked = in_use(config.objectives).get("mmm_text")
        tied = isinstance(masked, MultimodalMaskedTextConfig) and masked.tied_decoder
        heads = heads_of(True) if tied else {}
        tell_left_out("ViltForMaskedLM" if tied else "ViltModel", weights, heads)
        kept = {
            name: own
            for name, own in weights.items()
            if name.startswith("model.") or (tied and name.startswith("objectives.mmm_text."))
        }
        table = entries(ViltConfig.of(config), heads)
        return transformers_settings(config, tied=tied), to_theirs(kept, table, "the run's checkpoint")

    def companions(self, config: Config) -> dict[str, Any]:
        """Returns the files of ViltImageProcessor and of the run's tokenizer."""
        image = ViltConfig.of(config).image
        pixels = pixel_settings(
            "ViltImageProcessor",
            image,
            size={"shortest_edge": image.image_size},
            size_divisor=image.patch_size,
            do_pad=True,
        )
        words = tokenizer_files(config, ViltConfig.of(config).max_tokens)
        return {"preprocessor_config.json": pixels, **words}


LAYOUTS = ViltLayouts()


def transformers_settings(config: Config, *, tied: bool) -> dict[str, Any]:
    """Translates a configuration into ViltConfig's JSON."""
    model = ViltConfig.of(config)
    image = text_settings(model.image)
    for ours in ("image_mean", "image_std", "max_patches"):
        del image[ours]
    return {
        "model_type": "vilt",
        "architectures": ["ViltForMaskedLM" if tied else "ViltModel"],
        "dtype": "float32",
        **image,
        **dataclasses.asdict(model.text),
        **_SUPPORTED,
        "modality_type_vocab_size": model.modality_types,
        "initializer_range": model.initializer_range,
        "max_image_length": model.image.max_patches,
        "pad_token_id": model.load_tokenizer(config).pad_id,
    }


def of_transformers(raw: Mapping[str, Any], where: str) -> ViltConfig:
    """Builds our configuration from ViltConfig's JSON, whose layer_norm_eps is 1e-12 if it has none.

    Dropout is ignored: it has no effect on what a trained model computes, and runs set their own. Pixel
    statistics are those of the published code, if the folder has no others.
    """
    require(raw, _SUPPORTED, where)
    require_squares(raw, ("image_size", "patch_size"), where)
    image = take(StreamConfig, {"layer_norm_eps": 1e-12, **raw})
    most = raw.get("max_image_length") or -1
    most = most if most > 0 else max(StreamConfig.max_patches, image.num_patches)
    return ViltConfig(
        image=dataclasses.replace(image, max_patches=most),
        text=take(WordsConfig, raw),
        modality_types=raw.get("modality_type_vocab_size", ViltConfig.modality_types),
        initializer_range=raw.get("initializer_range", ViltConfig.initializer_range),
    )
