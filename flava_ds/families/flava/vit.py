"""A plain ViT, by DINO's, timm's or transformers' names, or BEiT's, as FLAVA's image encoder."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.hf_names import their_shape
from flava_ds.families.flava.image_encoder import ImageEncoder
from flava_ds.layouts import Entry, renamed, to_ours
from flava_ds.weightless import shapes_of

log = logging.getLogger(__name__)

VIT_LAYER_NORM_EPS = 1e-6
"""What DINO, BEiT and timm trained with."""

_TABLE = "relative_position_bias_table"
_SHARED_TABLE = f"rel_pos_bias.{_TABLE}"
_WRAPPERS = ("module.", "backbone.", "vit.", "beit.")
_HEADS = ("head.", "lm_head.", "classifier.", "pooler.dense.")
_SCALES = {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"}
"""What each of BEiT's factors is multiplied with."""

_VIT_RENAMES = (
    (r"^model\.image_encoder\.", ""),
    (r"^transformer\.", ""),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.attention\.qkv\.", ".attn.qkv."),
    (r"\.attention\.output\.", ".attn.proj."),
    (r"\.attention\.offset_biases$", f".attn.{_TABLE}"),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.mlp_up\.", ".mlp.fc1."),
    (r"\.mlp_down\.", ".mlp.fc2."),
    (r"^final_norm\.", "norm."),
    (r"^position_embeddings$", "pos_embed"),
    (r"^patch_embedding\.", "patch_embed.proj."),
)
"""From our names to timm's."""
_TRANSFORMERS_RENAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.relative_position_bias\.", "rel_pos_bias."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_([12])$", r".gamma_\1"),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
)
"""From transformers' names to timm's."""


def vit_settings(image: VisionEncoderConfig) -> dict[str, Any]:
    """Returns what transformers' ViT or BEiT must have in its config.json, if it has it at all, so that the
    same weights compute the same here."""
    shape = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    return {name: getattr(image, name) for name in shape} | {"hidden_act": "gelu"}


def vit_weights(state: Mapping[str, Tensor], image: VisionEncoderConfig, where: str) -> dict[str, Tensor]:
    """Converts a ViT's or BEiT's state dict to `model.image_encoder.*`, with a mask token if BEiT's has one.

    Heads and poolers are dropped. Such models expect pixels normalised with their own mean and standard
    deviation: set model.image.image_mean and image_std accordingly. BEiT's needs model.relative_positions.

    Raises: CheckpointError that names `where` and the tensor that does not fit.
    """
    own: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        own[name] = tensor
    if image.layer_norm_eps != VIT_LAYER_NORM_EPS:
        told = (
            "%s was trained with layer_norm_eps %g, the configuration has %g: hidden states will differ; set "
            "model.image.layer_norm_eps to %g"
        )
        log.warning(told, where, VIT_LAYER_NORM_EPS, image.layer_norm_eps, VIT_LAYER_NORM_EPS)
    if dropped := [name for name in own if name.startswith(_HEADS)]:
        log.warning("%s: dropped the head: %s", where, ", ".join(dropped))
    own = {name: tensor for name, tensor in own.items() if name not in dropped}
    if "embeddings.cls_token" in own:
        own = _with_joint_qkv({renamed(name, _TRANSFORMERS_RENAMES): own[name] for name in own}, where)
    relative = any(name.endswith(_TABLE) for name in own)
    if relative or any(name.endswith(tuple(_SCALES)) for name in own):
        own = _of_beit(own, image, where)
    return to_ours(own, vit_entries(image, relative=relative, masks="mask_token" in own), where)


def vit_entries(
    image: VisionEncoderConfig, *, relative: bool = False, masks: bool = False
) -> tuple[Entry, ...]:
    """Builds the table between our image encoder and a ViT in timm's or DINO's names."""
    shapes = shapes_of(lambda: ImageEncoder(image, masks=masks, relative_positions=relative))
    entries = []
    for name, shape in shapes.items():
        ours = f"model.image_encoder.{name}"
        entries.append(Entry(ours, (renamed(ours, _VIT_RENAMES),), shape, their_shape(ours, shape, image, 1)))
    return tuple(entries)


def _with_joint_qkv(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Joins the projections of queries, keys and values, which transformers keeps apart; a missing bias of
    the keys is zero.

    Raises: CheckpointError if another one is missing.
    """
    parts, found = re.compile(r"(.*\.attn\.)(query|key|value)\.(weight|bias)$"), {}
    for name, tensor in state.items():
        matched = parts.match(name)
        if not matched:
            found[name] = tensor
            continue
        before, _, kind = matched.groups()
        names = [f"{before}{part}.{kind}" for part in ("query", "key", "value")]
        present = [own for own in names if own in state]
        if missing := [own for own in names if own not in present and not own.endswith(".key.bias")]:
            raise CheckpointError(f"{where}: tensor '{missing[0]}' is missing; copy the file again")
        zero = torch.zeros_like(state[present[0]])
        found[f"{before}qkv.{kind}"] = torch.cat([state.get(own, zero) for own in names])
    return found


def _of_beit(state: Mapping[str, Tensor], image: VisionEncoderConfig, where: str) -> dict[str, Tensor]:
    """Writes a BEiT in a ViT's terms: factors of what a layer adds go into the last product before them, a
    table that all layers share into each, and absolute positions, which it lacks, are zero.

    Raises: CheckpointError if something is missing, or has another shape.
    """
    found = {name: tensor for name, tensor in state.items() if not name.endswith("relative_position_index")}
    shared = found.pop(_SHARED_TABLE, None)
    depth = len({name.split(".")[1] for name in found if name.startswith("blocks.")})
    if depth not in (0, image.num_hidden_layers):
        raise CheckpointError(
            f"{where}: a BEiT of {depth} blocks, but the configuration has {image.num_hidden_layers}"
        )
    try:
        for block in range(image.num_hidden_layers):
            for scale, product in _SCALES.items():
                factor = found.pop(f"blocks.{block}.{scale}", None)
                if factor is not None:
                    weight, bias = (f"blocks.{block}.{product}.{kind}" for kind in ("weight", "bias"))
                    factor = factor.float()
                    found[weight], found[bias] = factor[:, None] * found[weight], factor * found[bias]
            attention = f"blocks.{block}.attn."
            if shared is not None:
                found[attention + _TABLE] = shared.clone()
            if f"{attention}qkv.bias" not in found:
                q, v = found.pop(f"{attention}q_bias"), found.pop(f"{attention}v_bias")
                found[f"{attention}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    except KeyError as error:
        raise CheckpointError(f"{where}: tensor {error} of a BEiT is missing; copy the file again") from error
    except (IndexError, RuntimeError) as error:  # factors or biases of another shape
        raise CheckpointError(
            f"{where}: a tensor of 'blocks.{block}' has another shape than the others of a BEiT ({error})"
        ) from error
    if "pos_embed" not in found:
        found["pos_embed"] = torch.zeros(1, 1 + image.num_patches, image.hidden_size)
    if "norm.weight" not in found and "fc_norm.weight" in found:
        log.warning("%s: its last LayerNorm, trained on the mean of the patches, becomes the CLS's", where)
        found |= {f"norm.{kind}": found.pop(f"fc_norm.{kind}") for kind in ("weight", "bias")}
    return found
