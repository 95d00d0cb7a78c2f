"""ALIGN in the layout of transformers' AlignModel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flava_ds.config import Config
from flava_ds.config.encoders import BertTextConfig
from flava_ds.errors import CheckpointError
from flava_ds.families.align.config import AlignConfig, EfficientNetConfig
from flava_ds.families.align.model import LEAST_TEMPERATURE, Align
from flava_ds.families.bert_layouts import (
    BLOCK,
    EMBEDDINGS,
    pixel_settings,
    require,
    require_squares,
    split_qkv,
    tell_left_out,
    text_settings,
    tokenizer_files,
)
from flava_ds.layers.efficientnet import EPS, SQUEEZE, STAGES, STEM
from flava_ds.layouts import Entry, Foreign, Layouts, renamed, take, to_ours, to_theirs
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.weightless import shapes_of

_RENAMES = (
    (r"^model\.image_encoder\.stem_conv\.", "vision_model.embeddings.convolution."),
    (r"^model\.image_encoder\.stem_norm\.", "vision_model.embeddings.batchnorm."),
    (r"^model\.image_encoder\.", "vision_model.encoder."),
    (r"\.expand_conv\.", ".expansion.expand_conv."),
    (r"\.expand_norm\.", ".expansion.expand_bn."),
    (r"\.depthwise_(conv|norm)\.", r".depthwise_conv.depthwise_\1."),
    (r"\.project_conv\.", ".projection.project_conv."),
    (r"\.project_norm\.", ".projection.project_bn."),
    (r"^model\.text_encoder\.transformer\.blocks\.", "text_model.encoder.layer."),
    (r"^model\.text_encoder\.", "text_model."),
    *BLOCK,
    *EMBEDDINGS,
    (r"^model\.", ""),
)
_UNREAD = ("text_model.pooler.", "text_model.embeddings.position_ids", "num_batches_tracked")
"""Tensors of theirs that nothing reads: the pooler, and constants."""
_TEXT = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
_VISION = {
    "num_channels": 3,
    "depth_divisor": 8,
    "kernel_sizes": [stage.kernel for stage in STAGES],
    "in_channels": [STEM, *(stage.channels for stage in STAGES[:-1])],
    "out_channels": [stage.channels for stage in STAGES],
    "strides": [stage.stride for stage in STAGES],
    "num_block_repeats": [stage.blocks for stage in STAGES],
    "expand_ratios": [stage.expansion for stage in STAGES],
    "squeeze_expansion_ratio": SQUEEZE,
    "hidden_act": "swish",
    "pooling_type": "mean",
    "batch_norm_eps": EPS,
}
"""Settings that every model here has; the defaults of transformers."""
_RESIZED = 346 / 289
"""Edge to which images are resized before the crop, over the crop's."""


def entries(model: AlignConfig) -> tuple[Entry, ...]:
    """Builds the table between our names and transformers'."""
    found = []
    for own, shape in shapes_of(lambda: Align(model)).items():
        name = f"model.{own}"
        entry = split_qkv(name, renamed(name, _RENAMES), shape)
        found.append(dataclasses.replace(entry, their_shape=()) if name == "model.temperature" else entry)
    return tuple(found)


class AlignLayouts(Layouts):
    """Implements flava_ds/layouts.py for ALIGN."""

    def read(self, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str) -> Foreign:
        """Converts an AlignModel, with its running moments; its text pooler, which it does not read, is
        dropped.
        """
        model = of_transformers(settings or {}, where)
        own = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith(_UNREAD) and not name.endswith(_UNREAD)
        }
        weights = to_ours(own, entries(model), where)
        objectives = {
            "global_contrastive": GlobalContrastiveConfig(label_smoothing=0.1, logit_scale_max=10.0)
        }
        return Foreign(model, dict(objectives), weights)

    def write(
        self, config: Config, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns AlignConfig's JSON and AlignModel's tensors; those that it does not read are zeros.

        A warning names objectives whose own are left out.
        """
        tell_left_out("AlignModel", weights, ())
        model = AlignConfig.of(config)
        own = {name: tensor for name, tensor in weights.items() if name.startswith("model.")}
        # transformers divides by the temperature as it is
        own["model.temperature"] = own["model.temperature"].clamp(min=LEAST_TEMPERATURE)
        theirs = to_theirs(own, entries(model), "the run's checkpoint")
        width = model.text.hidden_size
        unread = {
            f"{name.removesuffix('running_mean')}num_batches_tracked": torch.zeros((), dtype=torch.int64)
            for name in theirs
            if name.endswith("running_mean")
        }
        unread |= {"text_model.pooler.dense.weight": torch.zeros(width, width)}
        unread |= {"text_model.pooler.dense.bias": torch.zeros(width)}
        return transformers_settings(config), {**theirs, **unread}

    def companions(self, config: Config) -> dict[str, Any]:
        """Returns the files of EfficientNetImageProcessor and of the run's tokenizer."""
        image = AlignConfig.of(config).image
        large, edge = round(image.image_size * _RESIZED), image.image_size
        pixels = pixel_settings(
            "EfficientNetImageProcessor",
            image,
            size={"height": large, "width": large},
            do_center_crop=True,
            crop_size={"height": edge, "width": edge},
            rescale_offset=False,
            include_top=False,
        )
        return {
            "preprocessor_config.json": pixels,
            **tokenizer_files(config, AlignConfig.of(config).max_tokens),
        }


LAYOUTS = AlignLayouts()


def transformers_settings(config: Config) -> dict[str, Any]:
    """Translates a configuration into AlignConfig's JSON.

    transformers hands batch_norm_momentum to torch, for which it is the share of the newest moments.
    """
    model = AlignConfig.of(config)
    image = model.image
    return {
        "model_type": "align",
        "architectures": ["AlignModel"],
        "dtype": "float32",
        "projection_dim": model.projection_dim,
        "temperature_init_value": model.temperature_init,
        "initializer_range": model.initializer_range,
        "text_config": {
            "model_type": "align_text_model",
            **text_settings(model.text),
            **_TEXT,
            "pad_token_id": model.load_tokenizer(config).pad_id,
        },
        "vision_config": {
            "model_type": "align_vision_model",
            **_VISION,
            "image_size": image.image_size,
            "width_coefficient": image.width,
            "depth_coefficient": image.depth,
            "depthwise_padding": [],
            # the window of its pooling, larger than any grid
            "hidden_dim": max(2560, image.image_size),
            "batch_norm_momentum": 1 - image.norm_momentum,
            "drop_connect_rate": image.drop_path,
        },
    }


def of_transformers(raw: Mapping[str, Any], where: str) -> AlignConfig:
    """Builds our configuration from AlignConfig's JSON; absent settings have transformers' defaults.

    Dropout is ignored: it has no effect on what a trained model computes, and runs set their own.
    """
    text, image = (raw.get(f"{kind}_config") or {} for kind in ("text", "vision"))
    require(text, _TEXT, where)
    require(image, _VISION, where)
    require_squares(image, ("image_size",), where)
    model = AlignConfig(
        text=take(BertTextConfig, text),
        image=EfficientNetConfig(
            image_size=image.get("image_size", 600),
            width=image.get("width_coefficient", EfficientNetConfig.width),
            depth=image.get("depth_coefficient", EfficientNetConfig.depth),
            drop_path=image.get("drop_connect_rate", EfficientNetConfig.drop_path),
        ),
        temperature_init=raw.get("temperature_init_value", 1.0),
        initializer_range=raw.get("initializer_range", AlignConfig.initializer_range),
    )
    if raw.get("projection_dim", model.projection_dim) != model.projection_dim:
        raise CheckpointError(
            f"{where}: projection_dim is {raw['projection_dim']}, but its images have {model.projection_dim} "
            "features; the file does not fit its configuration"
        )
    return model
