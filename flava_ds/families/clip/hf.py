"""CLIP in the layouts of transformers' CLIPModel and of open_clip: names, configurations, processors."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any, Literal

from torch import Tensor

from flava_ds.config import Config
from flava_ds.data.clip_bpe import ClipTokenizer
from flava_ds.data.tokenizer import load_tokenizer
from flava_ds.errors import CheckpointError
from flava_ds.families.bert_layouts import pixel_settings, tell_left_out, tokenizer_files
from flava_ds.families.clip.config import ClipConfig, ImageTowerConfig, TextTowerConfig
from flava_ds.families.clip.model import Clip
from flava_ds.layouts import Entry, Foreign, renamed, take, to_ours, to_theirs
from flava_ds.objectives.global_contrastive import ContrastiveConfig, GlobalContrastiveConfig
from flava_ds.objectives.sigmoid_contrastive import SigmoidContrastiveConfig
from flava_ds.weightless import shapes_of

log = logging.getLogger(__name__)

HEAD_SIZE, LARGER_HEADS = 64, {1280: 80, 1408: 88, 1664: 104, 1792: 112}
"""Of every published CLIP; and of the image towers of H, g, bigG and e, by their width. An open_clip state
dict does not contain it.
"""
_OF_OPEN_CLIP: dict[str, dict[str, Any]] = {
    "vision_cfg": {"pool_type": "tok", "act_kwargs": None, "norm_kwargs": None},
    "text_cfg": {"pool_type": "argmax", "no_causal_mask": False, "act_kwargs": None, "norm_kwargs": None},
}
"""Settings of open_clip that change what is computed and not which tensors there are, with the only values
that this model has.
"""
_ARGMAX_POOLING = 2
"""A transformers model with this eos_token_id pools at the largest id instead of the first EOS."""
_SHARED = (r"^model\.logit_scale$", "logit_scale")
_TRANSFORMERS = (
    _SHARED,
    (r"^model\.image_encoder\.", "vision_model."),
    (r"^model\.text_encoder\.", "text_model."),
    (r"^model\.image_projection\.", "visual_projection."),
    (r"^model\.text_projection\.", "text_projection."),
    (r"_model\.transformer\.blocks\.", "_model.encoder.layers."),
    (r"\.attention_norm\.", ".layer_norm1."),
    (r"\.attention\.output\.", ".self_attn.out_proj."),
    (r"\.mlp_norm\.", ".layer_norm2."),
    (r"\.mlp_up\.", ".mlp.fc1."),
    (r"\.mlp_down\.", ".mlp.fc2."),
    (r"^vision_model\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"_model\.positions$", "_model.embeddings.position_embedding.weight"),
    (r"^vision_model\.patch_embedding\.", "vision_model.embeddings.patch_embedding."),
    (r"^text_model\.word_embeddings\.", "text_model.embeddings.token_embedding."),
    (r"^vision_model\.embedding_norm\.", "vision_model.pre_layrnorm."),
    (r"^vision_model\.final_norm\.", "vision_model.post_layernorm."),
    (r"^text_model\.final_norm\.", "text_model.final_layer_norm."),
)
_OPEN_CLIP = (
    _SHARED,
    (r"^model\.image_projection\.weight$", "visual.proj"),
    (r"^model\.text_projection\.weight$", "text_projection"),
    (r"^model\.image_encoder\.", "visual."),
    (r"^model\.text_encoder\.", ""),
    (r"transformer\.blocks\.", "transformer.resblocks."),
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.attention\.qkv\.", ".attn.in_proj_"),
    (r"\.attention\.output\.", ".attn.out_proj."),
    (r"\.mlp_norm\.", ".ln_2."),
    (r"\.mlp_up\.", ".mlp.c_fc."),
    (r"\.mlp_down\.", ".mlp.c_proj."),
    (r"^visual\.cls_token$", "visual.class_embedding"),
    (r"positions$", "positional_embedding"),
    (r"^visual\.patch_embedding\.", "visual.conv1."),
    (r"^word_embeddings\.", "token_embedding."),
    (r"^visual\.embedding_norm\.", "visual.ln_pre."),
    (r"^visual\.final_norm\.", "visual.ln_post."),
    (r"^final_norm\.", "ln_final."),
)
_CONTRAST = "global_contrastive"
"""The objective's name in the recipes, which a choice of another loss keeps."""
_BIAS = Entry(f"objectives.{_CONTRAST}.logit_bias", ("logit_bias",), (1,), ())
"""Of a model that open_clip trained with --siglip."""
_CONSTANTS = ("position_ids", "attn_mask", "input_resolution", "context_length", "vocab_size")
"""Buffers that some versions save along with the weights."""


def entries(model: ClipConfig, *, open_clip: bool = False) -> tuple[Entry, ...]:
    """Builds the table between our names and transformers', or open_clip's."""
    image, found = model.image, []
    for own, shape in shapes_of(lambda: Clip(model)).items():
        name = f"model.{own}"
        theirs: tuple[str, ...] = (renamed(name, _OPEN_CLIP if open_clip else _TRANSFORMERS),)
        their_shape, transposed = shape, False
        if name.endswith("patch_embedding.weight"):
            their_shape = (shape[0], image.num_channels, image.patch_size, image.patch_size)
        elif name == "model.logit_scale":
            their_shape = ()
        elif open_clip and name.endswith("_projection.weight"):
            their_shape, transposed = shape[::-1], True
        elif ".attention.qkv." in name and not open_clip:
            theirs = tuple(theirs[0].replace(".attention.qkv.", f".self_attn.{part}_proj.") for part in "qkv")
            their_shape = (shape[0] // 3, *shape[1:])
        found.append(Entry(name, theirs, shape, their_shape, transposed))
    return tuple(found)


class ClipLayouts:
    """Implements flava_ds/layouts.py for CLIP."""

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns True if the names are those of an open_clip CLIP with a ViT."""
        return {
            "visual.class_embedding",
            "token_embedding.weight",
            "text_projection",
            "ln_final.weight",
        } <= set(names)

    def read(self, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str) -> Foreign:
        """Converts a CLIPModel or an open_clip CLIP."""
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(_CONSTANTS)}
        foreign = self.recognizes(tensors)
        try:
            model = (
                of_open_clip(settings, tensors, where) if foreign else of_transformers(settings or {}, where)
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{where}: its configuration is not CLIP's ({type(error).__name__}: {error})"
            ) from error
        table = entries(model, open_clip=foreign)
        loss: ContrastiveConfig = GlobalContrastiveConfig()
        if foreign and "logit_bias" in tensors:
            table, loss = (*table, _BIAS), SigmoidContrastiveConfig()
        return Foreign(model, {_CONTRAST: loss}, to_ours(tensors, table, where))

    def write(
        self, config: Config, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns CLIPConfig's JSON and CLIPModel's tensors. A warning names objectives that are left out."""
        tell_left_out("CLIPModel", weights, ())
        own = {name: tensor for name, tensor in weights.items() if name.startswith("model.")}
        return transformers_settings(config), to_theirs(
            own, entries(ClipConfig.of(config)), "the run's checkpoint"
        )

    def companions(self, config: Config) -> dict[str, Any]:
        """Returns the files of CLIPImageProcessor and of the run's tokenizer."""
        image, tokenizer = ClipConfig.of(config).image, load_tokenizer(config.data.vocabulary)
        edges = {"height": image.image_size, "width": image.image_size}
        pixels = pixel_settings(
            "CLIPImageProcessor",
            image,
            size={"shortest_edge": image.image_size},
            do_center_crop=True,
            crop_size=edges,
        )
        most = ClipConfig.of(config).text.max_position_embeddings
        if not isinstance(tokenizer, ClipTokenizer):
            return {"preprocessor_config.json": pixels, **tokenizer_files(config, most)}
        rules = "\n".join(["#version: 0.2", *(" ".join(rule) for rule in tokenizer.merges)]) + "\n"
        return {
            "preprocessor_config.json": pixels,
            "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": most},
            "vocab.json": tokenizer.entries,
            "merges.txt": rules,
        }


LAYOUTS = ClipLayouts()


def transformers_settings(config: Config) -> dict[str, Any]:
    """Translates a configuration into CLIPConfig's JSON.

    Raises: CheckpointError if transformers would pool at another row than a text's last.
    """
    model, tokenizer = ClipConfig.of(config), load_tokenizer(config.data.vocabulary)
    if tokenizer.sep_id == _ARGMAX_POOLING:
        raise CheckpointError(
            f"{tokenizer.file}: the last token of a text has id {_ARGMAX_POOLING}, for which transformers "
            "pools at another row; a model with this vocabulary cannot be exported"
        )

    def tower(shape: Any, kind: str, **more: Any) -> dict[str, Any]:
        own = {
            name: value
            for name, value in dataclasses.asdict(shape).items()
            if name not in ("image_mean", "image_std")
        }
        shared = {
            "hidden_act": model.activation,
            "attention_dropout": 0.0,
            "projection_dim": model.projection_dim,
        }
        return {"model_type": f"clip_{kind}_model", **own, **shared, **more}

    ids = {
        "bos_token_id": tokenizer.cls_id,
        "eos_token_id": tokenizer.sep_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "dtype": "float32",
        "projection_dim": model.projection_dim,
        "logit_scale_init_value": model.logit_scale_init,
        "vision_config": tower(model.image, "vision"),
        "text_config": tower(model.text, "text", **ids),
    }


def of_transformers(raw: Mapping[str, Any], where: str) -> ClipConfig:
    """Builds our configuration from CLIPConfig's JSON; the defaults of both are ViT-B/32."""
    if raw.get("model_type", "clip") != "clip":
        raise CheckpointError(f"{where}: model_type is '{raw['model_type']}'; expected 'clip'")
    image, text = (
        (raw.get(f"{name}_config") or {}) | (raw.get(f"{name}_config_dict") or {})
        for name in ("vision", "text")
    )
    activations = {part.get("hidden_act", ClipConfig.activation) for part in (image, text)}
    if len(activations) != 1 or not activations <= {"gelu", "quick_gelu"}:
        raise CheckpointError(
            f"{where}: hidden_act is {sorted(activations)}; gelu or quick_gelu in both towers is supported"
        )
    for part in (image, text):
        if part.get("attention_dropout", 0) != 0:
            raise CheckpointError(
                f"{where}: attention_dropout is {part['attention_dropout']}; this model has none"
            )
    return ClipConfig(
        image=take(ImageTowerConfig, image),
        text=take(TextTowerConfig, text),
        projection_dim=raw.get("projection_dim", ClipConfig.projection_dim),
        logit_scale_init=raw.get("logit_scale_init_value", ClipConfig.logit_scale_init),
        activation=activations.pop(),
    )


def of_open_clip(settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str) -> ClipConfig:
    """Reads the shape from the tensors, and activation and heads from open_clip's configuration."""
    conv, table = tensors["visual.conv1.weight"], tensors["visual.positional_embedding"]
    grid, width = round((table.shape[0] - 1) ** 0.5), tensors["ln_final.weight"].shape[0]
    activation, image_heads, text_heads = _unseen(settings, conv.shape[0], width, where)
    image = ImageTowerConfig(
        image_size=grid * conv.shape[2],
        patch_size=conv.shape[2],
        num_attention_heads=image_heads,
        **_tower(tensors, "visual.", conv.shape[0]),
    )
    words, positions = tensors["token_embedding.weight"], tensors["positional_embedding"]
    text = TextTowerConfig(
        vocab_size=words.shape[0],
        max_position_embeddings=positions.shape[0],
        num_attention_heads=text_heads,
        **_tower(tensors, "", width),
    )
    return ClipConfig(
        image=image, text=text, projection_dim=tensors["text_projection"].shape[1], activation=activation
    )


def _unseen(
    settings: Mapping[str, Any] | None, image_width: int, text_width: int, where: str
) -> tuple[Literal["gelu", "quick_gelu"], int, int]:
    """Returns the activation and the heads of both towers, which no tensor shows.

    Raises: CheckpointError for a setting that this model has not.
    """
    model = settings if settings is None or "vision_cfg" in settings else settings.get("model_cfg")
    if model is None:
        heads = (
            max(1, image_width // LARGER_HEADS.get(image_width, HEAD_SIZE)),
            max(1, text_width // HEAD_SIZE),
        )
        log.warning(
            "%s: a state dict contains neither the activation nor the number of heads; its config.json says "
            "gelu, which open_clip uses for names without -quickgelu: set --model.activation quick_gelu for "
            "OpenAI's weights and for names with it. It has %d heads for images and %d for texts, as "
            "published models of these widths: set --model.image.num-attention-heads and "
            "--model.text.num-attention-heads for others",
            where,
            *heads,
        )
        return "gelu", *heads
    image, text = (model.get(section, {}) for section in _OF_OPEN_CLIP)
    for section, only in _OF_OPEN_CLIP.items():
        for name, value in only.items():
            if (found := model.get(section, {}).get(name, value)) != value and (found or value):
                raise CheckpointError(
                    f"{where}: {section}.{name} is {json.dumps(found)}; this model has {json.dumps(value)}"
                )
    return (
        "quick_gelu" if model.get("quick_gelu", False) else "gelu",
        max(1, image_width // image.get("head_width", HEAD_SIZE)),
        text.get("heads", 8),
    )


def _tower(tensors: Mapping[str, Tensor], prefix: str, width: int) -> dict[str, Any]:
    """Infers a tower's size from its blocks."""
    blocks = {
        name.split("resblocks.")[1].split(".")[0]
        for name in tensors
        if name.startswith(f"{prefix}transformer.resblocks.")
    }
    up = tensors[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    return {"hidden_size": width, "num_hidden_layers": len(blocks), "intermediate_size": up}
