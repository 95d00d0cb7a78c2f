"""FLAVA in transformers' layout: names, configurations, processors."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from flava_ds.config import CodebookConfig, Config, ObjectiveConfig
from flava_ds.config.encoders import EncoderConfig, VisionEncoderConfig
from flava_ds.errors import CheckpointError
from flava_ds.families.bert_layouts import (
    named_by_type,
    pixel_settings,
    require,
    tell_left_out,
    tokenizer_files,
)
from flava_ds.families.flava.config import (
    FlavaConfig,
    FlavaTextConfig,
    MultimodalEncoderConfig,
    flava_objectives,
)
from flava_ds.families.flava.hf_names import HEADS, flava_entries, tied_biases
from flava_ds.layouts import Foreign, take, to_ours, to_theirs
from flava_ds.objectives.masked_image import MaskedImageConfig

log = logging.getLogger(__name__)

PUBLISHED_PATCHES = 196
"""Of a picture; masks are scaled for models with fewer."""
ENCODERS = ("image", "text", "multimodal")
_LANCZOS = 1
_SUPPORTED = {
    "hidden_act": "gelu",
    "qkv_bias": True,
    "use_cls_token": True,
    "mask_token": True,
    "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0,
}
_HEAD_NAMES = tuple(f"{name}_head." for name in (*HEADS, "itm"))
_OBJECTIVES = ("global_contrastive", *HEADS, "itm")
"""Types of objectives that transformers' class has a weight for."""
_OLD_BUFFERS = ("text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")
"""Constant buffers that old versions of transformers saved."""
_SAME = {"local_contrastive": "global_contrastive"}
"""A type of objective whose loss is that of another one."""


class FlavaLayouts:
    """Implements flava_ds/layouts.py for FLAVA."""

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether the names are those of a FlavaModel or FlavaForPreTraining."""
        return any(name.removeprefix("flava.").startswith("multimodal_model.") for name in names)

    def read(
        self,
        settings: Mapping[str, Any] | None,
        tensors: Mapping[str, Tensor],
        where: str,
        *,
        poolers: bool = False,
    ) -> Foreign:
        """Converts a FlavaForPreTraining or a FlavaModel, which has no heads.

        `poolers` keeps the three poolers that no pre-training loss uses; otherwise they are dropped, and
        logged unless they are those that `write` makes up.
        """
        if settings is None:
            raise CheckpointError(f"{where}: a FLAVA needs its config.json; give the folder that holds both")
        rest, codebook, dropped = _without_foreign_parts(tensors, where)
        with_heads = any(name.startswith(_HEAD_NAMES) for name in rest)
        if not any(name.startswith("flava.") for name in rest):
            rest = {
                name if name.startswith(_HEAD_NAMES) else f"flava.{name}": tensor
                for name, tensor in rest.items()
            }
        config = of_transformers(settings, f"{where}/config.json", poolers)
        if not with_heads:
            config = dataclasses.replace(config, objectives=without_heads(config.objectives))
        unused = tuple(f"{name}_head." for name, own in config.objectives.items() if own.weight == 0)
        no_use = [n for n in rest if n.startswith(unused) or (not poolers and "_model.pooler." in n)]
        dropped, made_up = [*dropped, *no_use], _made_up_poolers(FlavaConfig.of(config))
        if lost := [n for n in dropped if n not in made_up or not torch.equal(rest[n].float(), made_up[n])]:
            told = "%s: dropped %d tensors that are not used here: %s"
            log.warning(told, where, len(lost), ", ".join(lost))
        kept = {name: tensor for name, tensor in rest.items() if name not in no_use}
        weights = to_ours(kept, flava_entries(config), where)
        return Foreign(config.model, config.objectives, weights, config.codebook, codebook, tuple(dropped))

    def write(
        self, config: Config, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns FlavaConfig's JSON and FlavaForPreTraining's tensors.

        transformers requires the encoders' poolers, which no loss trains: if the run keeps none, identity
        matrices with zero biases are written, so that a pooled output is the tanh of the CLS. The head of an
        inactive objective is missing; its weight in the JSON is 0, and transformers initialises it at random.
        Heads of objectives that are not FLAVA's are left out, which a warning says.
        """
        config, weights = named_by_type(config, weights, also=_SAME)
        tell_left_out("FlavaForPreTraining", weights, _OBJECTIVES)
        config = dataclasses.replace(
            config, objectives={name: own for name, own in config.objectives.items() if name in _OBJECTIVES}
        )
        weights = {name: own for name, own in weights.items() if not _of_another_objective(name)}
        _require_representable(config)
        model = FlavaConfig.of(config)
        theirs = to_theirs(weights, flava_entries(config), "the run's checkpoint")
        if not model.poolers:
            theirs |= _made_up_poolers(model)
        return transformers_settings(config), theirs

    def companions(self, config: Config) -> dict[str, Any]:
        """Returns the files of BertTokenizer and FlavaProcessor.

        Raises: DataError when the vocabulary does not exist.
        """
        image, codebook = FlavaConfig.of(config).image, config.codebook
        objectives = named_by_type(config, {}, also=_SAME)[0].objectives
        masking = cast(MaskedImageConfig, objectives.get("mim", MaskedImageConfig()))
        pixels = {"height": image.image_size, "width": image.image_size}
        codebook_pixels = {"height": codebook.image_size, "width": codebook.image_size}
        processor = pixel_settings(
            "FlavaImageProcessor",
            image,
            processor_class="FlavaProcessor",
            size=pixels,
            do_center_crop=True,
            crop_size=pixels,
            input_size_patches=image.grid_size,
            total_mask_patches=masking.num_masked_patches,
            mask_group_min_patches=masking.min_patches_per_block,
            mask_group_min_aspect_ratio=masking.min_aspect_ratio,
            codebook_do_resize=True,
            codebook_size=codebook_pixels,
            codebook_resample=_LANCZOS,
            codebook_do_center_crop=True,
            codebook_crop_size=codebook_pixels,
            codebook_do_rescale=True,
            codebook_rescale_factor=1 / 255,
            codebook_do_map_pixels=True,
            # The codebook takes mapped pixels without further normalisation.
            codebook_do_normalize=True,
            codebook_image_mean=[0.0] * 3,
            codebook_image_std=[1.0] * 3,
        )
        return {
            **tokenizer_files(config, FlavaConfig.of(config).text.max_position_embeddings),
            "preprocessor_config.json": processor,
            "processor_config.json": {"processor_class": "FlavaProcessor", "image_processor": processor},
        }


LAYOUTS = FlavaLayouts()


def _of_another_objective(name: str) -> bool:
    head, *rest = name.split(".")
    return head == "objectives" and rest[0] not in _OBJECTIVES


def transformers_settings(config: Config) -> dict[str, Any]:
    """Translates the configuration into FlavaConfig's JSON."""
    model, codebook = FlavaConfig.of(config), config.codebook

    def encoder(kind: str, *own: str, **more: Any) -> dict[str, Any]:
        part = getattr(model, kind)
        return {
            "model_type": f"flava_{kind}_model",
            **{field.name: getattr(part, field.name) for field in dataclasses.fields(EncoderConfig)},
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "qkv_bias": True,
            "initializer_range": model.initializer_range,
            **{name: getattr(part, name) for name in own},
            **more,
        }

    image_fields = ("image_size", "patch_size", "num_channels")
    text_fields = ("vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id")
    return {
        "model_type": "flava",
        "architectures": ["FlavaForPreTraining"],
        "dtype": "float32",
        "image_config": encoder("image", *image_fields, mask_token=True, vocab_size=codebook.vocab_size),
        "text_config": encoder("text", *text_fields),
        "multimodal_config": encoder("multimodal", use_cls_token=True),
        "image_codebook_config": {
            "model_type": "flava_image_codebook",
            "num_groups": codebook.num_groups,
            "num_blocks_per_group": codebook.num_blocks_per_group,
            "hidden_size": codebook.hidden_size,
            "input_channels": codebook.num_channels,
            "vocab_size": codebook.vocab_size,
            "freeze": True,
        },
        "init_codebook": False,
        "hidden_size": model.multimodal.hidden_size,
        "layer_norm_eps": model.multimodal.layer_norm_eps,
        "projection_dim": model.projection_dim,
        "logit_scale_init_value": model.logit_scale_init,
        "initializer_range": model.initializer_range,
        **{f"{name}_weight": weight_of(config, name) for name in _OBJECTIVES},
    }


def weight_of(config: Config, objective: str) -> float:
    """Returns an objective's weight; 0 if the run lacks it."""
    return config.objectives[objective].weight if objective in config.objectives else 0.0


def of_transformers(raw: Mapping[str, Any], where: str, poolers: bool = False) -> Config:
    """Builds our configuration from theirs; missing values get transformers' defaults, which are ours too."""
    parts = {
        name: (raw.get(f"{name}_config") or {}) | (raw.get(f"{name}_config_dict") or {})
        for name in (*ENCODERS, "image_codebook")
    }
    for name in ENCODERS:
        require(parts[name], _SUPPORTED, f"{where}: {name}_config")
    model = FlavaConfig(
        image=take(
            VisionEncoderConfig, {**parts["image"], **_square(parts["image"], f"{where}: image_config")}
        ),
        text=take(FlavaTextConfig, parts["text"]),
        multimodal=take(MultimodalEncoderConfig, parts["multimodal"]),
        projection_dim=raw.get("projection_dim", FlavaConfig.projection_dim),
        logit_scale_init=raw.get("logit_scale_init_value", FlavaConfig.logit_scale_init),
        initializer_range=raw.get("initializer_range", FlavaConfig.initializer_range),
        poolers=poolers,
    )
    codes = parts["image"].get("vocab_size", CodebookConfig.vocab_size)
    codebook = take(CodebookConfig, {**parts["image_codebook"], "vocab_size": codes})
    codebook = dataclasses.replace(
        codebook,
        num_channels=parts["image_codebook"].get("input_channels", 3),
        image_size=model.image.grid_size * 2 ** (codebook.num_groups - 1),
    )
    masked = round(0.4 * model.num_patches)  # as published: 75 of 196, in blocks of at least 16
    small = {"num_masked_patches": masked, "min_patches_per_block": max(1, min(16, masked // 4))}
    objectives = {
        name: dataclasses.replace(
            own,
            weight=float(raw.get(f"{name}_weight", 1.0)),
            **(small if isinstance(own, MaskedImageConfig) and model.num_patches < PUBLISHED_PATCHES else {}),
        )
        for name, own in flava_objectives().items()
    }
    return Config(name="imported", model=model, codebook=codebook, objectives=objectives)


def without_heads(objectives: dict[str, ObjectiveConfig]) -> dict[str, ObjectiveConfig]:
    """Sets the weight of every objective with a head to 0, for a FlavaModel, which has no heads."""
    return {
        name: own if name == "global_contrastive" else dataclasses.replace(own, weight=0.0)
        for name, own in objectives.items()
    }


def _made_up_poolers(model: FlavaConfig) -> dict[str, Tensor]:
    """Returns the poolers of a model that keeps none, in transformers' names."""
    made_up = {}
    for name in ENCODERS:
        width = getattr(model, name).hidden_size
        made_up[f"flava.{name}_model.pooler.dense.weight"] = torch.eye(width)
        made_up[f"flava.{name}_model.pooler.dense.bias"] = torch.zeros(width)
    return made_up


def _without_foreign_parts(
    tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Removes the image codebook, old buffers and the second names of tied biases."""
    codebook = {
        name.removeprefix("image_codebook."): tensor
        for name, tensor in tensors.items()
        if name.startswith("image_codebook.")
    }
    dropped = [name for name in tensors if name.endswith(_OLD_BUFFERS)]
    rest = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("image_codebook.") and name not in dropped
    }
    for alias, name in tied_biases(rest).items():
        bias = rest.pop(alias)
        if not torch.equal(rest.setdefault(name, bias), bias):
            raise CheckpointError(
                f"{where}: '{alias}' and '{name}' are the same tensor in transformers, but differ in the "
                "file; delete the wrong one"
            )
    return rest, codebook, dropped


def _square(values: Mapping[str, Any], where: str) -> dict[str, int]:
    """Reads image_size and patch_size, which transformers also accepts as pairs.

    Raises: CheckpointError if a pair is not a square.
    """
    sizes = {}
    for name in ("image_size", "patch_size"):
        value = values.get(name, getattr(VisionEncoderConfig, name))
        edges = {value} if isinstance(value, int) else set(value)
        if len(edges) != 1:
            raise CheckpointError(f"{where}.{name} is {value}; only squares are supported")
        sizes[name] = edges.pop()
    return sizes


def _require_representable(config: Config) -> None:
    """Rejects models that transformers cannot hold; warns about differences in rounding.

    Its heads take their size from the unimodal encoders.

    Raises: CheckpointError.
    """
    model = FlavaConfig.of(config)
    if model.relative_positions:
        raise CheckpointError(
            "model.relative_positions is true: transformers' FLAVA has no such biases, so this model cannot "
            "be exported for it; use --to safetensors"
        )
    for name, encoder in (("image", model.image), ("text", model.text)):
        if weight_of(config, f"mmm_{name}") == 0:
            continue
        if encoder.hidden_size != model.multimodal.hidden_size:
            raise CheckpointError(
                f"model.{name}.hidden_size {encoder.hidden_size} differs from model.multimodal.hidden_size "
                f"{model.multimodal.hidden_size}: transformers gives the mmm_{name} head the {name} "
                "encoder's width, so this model cannot be exported"
            )
        if encoder.layer_norm_eps != model.multimodal.layer_norm_eps:
            told = (
                "transformers gives the mmm_%s head the %s encoder's layer_norm_eps %g, this model uses %g "
                "there; logits may differ slightly"
            )
            log.warning(told, name, name, encoder.layer_norm_eps, model.multimodal.layer_norm_eps)
