"""Maps our state-dict names to those of transformers' FLAVA and of plain ViTs (DINO, timm).

Every conversion is a renaming, a reshape or, for q, k, v, a split along the first axis, so both directions
are bit-exact.
"""

from __future__ import annotations

from collections.abc import Collection

from flava_ds.config import Config
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.config import FlavaConfig
from flava_ds.families.flava.task import FlavaTask
from flava_ds.layouts import Entry, renamed
from flava_ds.weightless import shapes_of

HEADS = ("mim", "mlm", "mmm_image", "mmm_text")
_HEADS = "|".join(HEADS)

_RENAMES = (
    (r"^model\.(image|text|multimodal)_encoder\.", r"flava.\1_model."),
    (r"_model\.transformer\.blocks\.", "_model.encoder.layer."),
    (r"(layer\.\d+)\.attention_norm\.", r"\1.layernorm_before."),
    (r"(layer\.\d+)\.attention\.output\.", r"\1.attention.output.dense."),
    (r"(layer\.\d+)\.mlp_norm\.", r"\1.layernorm_after."),
    (r"(layer\.\d+)\.mlp_up\.", r"\1.intermediate.dense."),
    (r"(layer\.\d+)\.mlp_down\.", r"\1.output.dense."),
    (r"_model\.final_norm\.", "_model.layernorm."),
    (r"image_model\.(cls_token|mask_token|position_embeddings)$", r"image_model.embeddings.\1"),
    (r"image_model\.patch_embedding\.", "image_model.embeddings.patch_embeddings.projection."),
    (r"text_model\.((?:word|position|token_type)_embeddings)\.", r"text_model.embeddings.\1."),
    (r"text_model\.embedding_norm\.", "text_model.embeddings.LayerNorm."),
    (r"^model\.(image|text)_to_multimodal\.", r"flava.\1_to_mm_projection."),
    (r"^model\.((?:image|text)_projection\.|logit_scale$)", r"flava.\1"),
    (r"^objectives\.itm\.head\.classifier\.", "itm_head.seq_relationship."),
    (r"^objectives\.itm\.head\.", "itm_head."),
    (rf"^objectives\.({_HEADS})\.head\.dense\.", r"\1_head.transform.dense."),
    (rf"^objectives\.({_HEADS})\.head\.norm\.", r"\1_head.transform.LayerNorm."),
    (rf"^objectives\.({_HEADS})\.head\.decoder\.", r"\1_head.decoder."),
)
"""Applied in this order to our names."""


def huggingface_names(name: str) -> tuple[str, ...]:
    """Translates one of our names into FlavaForPreTraining's: one name, or three for a fused qkv.

    Raises: CheckpointError for a name without a counterpart.
    """
    theirs = renamed(name, _RENAMES)
    if theirs == name or theirs.startswith(("model.", "objectives.")):
        raise CheckpointError(f"tensor '{name}' has no counterpart in Hugging Face's FlavaForPreTraining")
    head, fused, kind = theirs.partition(".attention.qkv.")
    if not fused:
        return (theirs,)
    return tuple(f"{head}.attention.attention.{part}.{kind}" for part in ("query", "key", "value"))


def flava_entries(config: Config) -> tuple[Entry, ...]:
    """Builds the table for `config`'s model and objectives, which are named like their types; an objective of
    weight 0 has no entries.
    """
    entries, image = [], FlavaConfig.of(config).image
    for name, shape in shapes_of(lambda: FlavaTask(config)).items():
        theirs = huggingface_names(name)
        entries.append(Entry(name, theirs, shape, their_shape(name, shape, image, len(theirs))))
    return tuple(entries)


def their_shape(name: str, shape: tuple[int, ...], image: VisionEncoderConfig, parts: int) -> tuple[int, ...]:
    """Returns the shape of each of their tensors for one of ours."""
    if name.endswith(("cls_token", "mask_token")):
        return (1, 1, *shape)
    if name.endswith("image_encoder.position_embeddings"):
        return (1, *shape)
    if name.endswith("image_encoder.patch_embedding.weight"):
        return (shape[0], image.num_channels, image.patch_size, image.patch_size)
    if name.endswith("logit_scale"):
        return ()
    return (shape[0] // parts, *shape[1:])


def tied_biases(names: Collection[str]) -> dict[str, str]:
    """Maps the second name of tied decoder biases, which transformers' state dicts may list, to the first."""
    pairs = {f"{head}_head.bias": f"{head}_head.decoder.bias" for head in HEADS}
    return {alias: name for alias, name in pairs.items() if alias in names}
