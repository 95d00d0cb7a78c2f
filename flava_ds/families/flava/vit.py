"""A plain ViT, by DINO's or timm's names, as FLAVA's image encoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.hf_names import their_shape
from flava_ds.families.flava.image_encoder import ImageEncoder
from flava_ds.layouts import Entry, renamed, to_ours

log = logging.getLogger(__name__)

VIT_LAYER_NORM_EPS = 1e-6
"""What DINO and timm trained with."""

BEIT = ("relative_position_bias_table", "gamma_1", "lambda_1")
"""Ends of names that only BEiT has."""

_VIT_RENAMES = (
    (r"^model\.image_encoder\.", ""),
    (r"^transformer\.", ""),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.attention\.qkv\.", ".attn.qkv."),
    (r"\.attention\.output\.", ".attn.proj."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.mlp_up\.", ".mlp.fc1."),
    (r"\.mlp_down\.", ".mlp.fc2."),
    (r"^final_norm\.", "norm."),
    (r"^position_embeddings$", "pos_embed"),
    (r"^patch_embedding\.", "patch_embed.proj."),
)


def vit_weights(state: Mapping[str, Tensor], image: VisionEncoderConfig, where: str) -> dict[str, Tensor]:
    """Converts a ViT's state dict to `model.image_encoder.*`, without a mask token.

    A classification or projection head is dropped. Such models expect pixels normalised with their own mean
    and standard deviation: set model.image.image_mean and image_std accordingly.

    Raises: CheckpointError that names `where` and the tensor that does not fit.
    """
    state = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in state.items()}
    if beit := next((name for name in state if name.endswith(BEIT)), None):
        raise CheckpointError(
            f"{where}: '{beit}' is BEiT's, whose layers add relative positions and scale their branches; "
            "FLAVA's image encoder does neither, so take DINO's, or another ViT with absolute positions"
        )
    if image.layer_norm_eps != VIT_LAYER_NORM_EPS:
        told = (
            "%s was trained with layer_norm_eps %g, the configuration has %g: hidden states will differ; set "
            "model.image.layer_norm_eps to %g"
        )
        log.warning(told, where, VIT_LAYER_NORM_EPS, image.layer_norm_eps, VIT_LAYER_NORM_EPS)
    dropped = [name for name in state if name.startswith("head.")]
    if dropped:
        log.warning("%s: dropped the head: %s", where, ", ".join(dropped))
    return to_ours(
        {name: tensor for name, tensor in state.items() if name not in dropped}, vit_entries(image), where
    )


def vit_entries(image: VisionEncoderConfig) -> tuple[Entry, ...]:
    """Builds the table between our image encoder, without mask token, and a ViT in timm's or DINO's names."""
    with torch.device("meta"):
        shapes = {
            f"model.image_encoder.{name}": tuple(tensor.shape)
            for name, tensor in ImageEncoder(image).state_dict().items()
        }
    entries = []
    for name, shape in shapes.items():
        theirs = renamed(name, _VIT_RENAMES)
        if not name.endswith(".mask_token"):
            entries.append(Entry(name, (theirs,), shape, their_shape(name, shape, image, 1)))
    return tuple(entries)
