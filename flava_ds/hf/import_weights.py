"""Imports published weights: FLAVA folders from transformers or the Hub, ViT-B/16 of DINO or timm.

Everything is local: no network access, and no need for transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flava_ds.config import CodebookConfig, Config, ObjectiveConfig, save
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.config import (
    FlavaConfig,
    FlavaTextConfig,
    MultimodalEncoderConfig,
    flava_objectives,
)
from flava_ds.hf.mapping import flava_entries, tied_biases, vit_entries
from flava_ds.layouts import to_ours

log = logging.getLogger(__name__)

VIT_LAYER_NORM_EPS = 1e-6
"""The value that DINO and timm trained with."""


@dataclass(frozen=True)
class Imported:
    """A foreign FLAVA in our layout.

    `weights` has the names of FlavaTask's state dict, `codebook_weights` those of the foreign image codebook
    (empty if the folder has none), `dropped` the foreign names that are not used here.
    """

    model: FlavaConfig
    codebook: CodebookConfig
    objectives: dict[str, ObjectiveConfig]
    weights: dict[str, Tensor]
    codebook_weights: dict[str, Tensor]
    dropped: tuple[str, ...]

    def config(self, name: str = "imported") -> Config:
        """Returns a configuration whose model accepts `weights`."""
        return Config(name=name, model=self.model, codebook=self.codebook, objectives=self.objectives)


def import_folder(path: Path, *, poolers: bool = False) -> Imported:
    """Imports a FlavaForPreTraining or FlavaModel folder.

    It has config.json with model.safetensors, a sharded index, or pytorch_model.bin. `poolers` keeps the
    three poolers that no pre-training loss uses; otherwise they are dropped and logged.

    Raises: CheckpointError naming the file, setting or tensor that does not fit.
    """
    path = Path(path)
    raw = read_json(path / "config.json")
    tensors = read_folder(path)
    tensors, codebook_weights, dropped = _without_foreign_parts(tensors, str(path))
    with_heads = any(
        name.endswith(("_head.decoder.weight", "_head.seq_relationship.weight")) for name in tensors
    )
    if not any(name.startswith("flava.") for name in tensors):
        tensors = {
            f"flava.{name}" if not name.startswith(_HEAD_NAMES) else name: tensor
            for name, tensor in tensors.items()
        }
    config = _config(raw, path / "config.json", poolers)
    if not with_heads:
        config = dataclasses.replace(config, objectives=without_heads(config.objectives))
    unused = tuple(f"{name}_head." for name, own in config.objectives.items() if own.weight == 0)
    names = [
        name for name in tensors if name.startswith(unused) or (not poolers and "_model.pooler." in name)
    ]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in names}
    dropped += names
    if dropped:
        log.warning(
            "%s: dropped %d tensors that are not used here: %s", path, len(dropped), ", ".join(dropped)
        )
    weights = to_ours(tensors, flava_entries(config), str(path))
    return Imported(
        config.model, config.codebook, config.objectives, weights, codebook_weights, tuple(dropped)
    )


def write_imported(imported: Imported, out: Path) -> Path:
    """Writes model.safetensors, config.json and any image_codebook/ for initial_weights. Returns `out`."""
    out.mkdir(parents=True, exist_ok=True)
    save(imported.config(), out / "config.json")
    save_file(
        {name: tensor.contiguous() for name, tensor in imported.weights.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    if imported.codebook_weights:
        (out / "image_codebook").mkdir(exist_ok=True)
        codebook = {name: tensor.contiguous() for name, tensor in imported.codebook_weights.items()}
        save_file(codebook, out / "image_codebook" / "model.safetensors", metadata={"format": "pt"})
    return out


def import_vit(path: Path, image: VisionEncoderConfig) -> dict[str, Tensor]:
    """Imports a plain ViT in DINO's or timm's names as `model.image_encoder.*`, without a mask token.

    Takes a safetensors file, a state dict, or DINO's full checkpoint (its teacher). A classification or
    projection head is dropped. Such files expect pixels normalised with their own mean and standard
    deviation: set model.image.image_mean and image_std accordingly.

    Raises: CheckpointError naming the tensor that does not fit.
    """
    state = read_file(Path(path), nested=("teacher",))
    state = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in state.items()}
    return vit_weights(state, image, str(path))


def write_imported_vit(path: Path, out: Path) -> Path:
    """Writes a ViT-B/16 as an image encoder for initial_weights; the rest starts anew. Returns `out`."""
    weights = import_vit(path, VisionEncoderConfig())
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    return out


def vit_weights(state: Mapping[str, Tensor], image: VisionEncoderConfig, where: str) -> dict[str, Tensor]:
    """Converts a ViT's state dict in memory; see `import_vit`."""
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


def without_heads(objectives: dict[str, ObjectiveConfig]) -> dict[str, ObjectiveConfig]:
    """Sets the weight of every objective with a head to 0, for a FlavaModel, which has no heads."""
    kept = ("global_contrastive",)
    return {
        name: own if name in kept else dataclasses.replace(own, weight=0.0)
        for name, own in objectives.items()
    }


def read_folder(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Reads all tensors of a folder, whole or sharded; its files' names start with `prefix`.

    Raises: CheckpointError if there is nothing readable or a shard is missing.
    """
    for name in (f"{prefix}model.safetensors", f"{prefix}pytorch_model.bin"):
        if (path / name).is_file():
            return read_file(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            listed = read_json(index).get("weight_map", {})
            tensors: dict[str, Tensor] = {}
            for shard in sorted(set(listed.values())):
                if not (path / shard).is_file():
                    raise CheckpointError(
                        f"{path / shard} is missing, but {index.name} lists it; copy all shards"
                    )
                tensors |= read_file(path / shard)
            absent = [name for name in listed if name not in tensors]
            if absent:
                raise CheckpointError(
                    f"{index}: tensor '{absent[0]}' is not in its shard {listed[absent[0]]}; "
                    "copy the shards again"
                )
            return tensors
    raise CheckpointError(
        f"{path}: has no model.safetensors, pytorch_model.bin or index of shards; copy the whole snapshot"
    )


def read_file(path: Path, nested: Collection[str] = ()) -> dict[str, Tensor]:
    """Reads a safetensors file, or a state dict saved by torch, without executing code from it.

    `nested` are keys to look under.

    Raises: CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        # plain values: DINO's full checkpoint stores its arguments in them
        with torch.serialization.safe_globals([argparse.Namespace]):
            state: Any = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    except Exception as error:  # a damaged pickle may raise anything, even without a message
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise CheckpointError(f"{path}: not a readable safetensors file or state dict ({reason})") from error
    if isinstance(state, dict):
        state = next((state[key] for key in nested if key in state), state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: is not a flat state dict of tensors;  save model.state_dict() alone")
    return dict(state)


_HEAD_NAMES = ("mim_head.", "mlm_head.", "mmm_image_head.", "mmm_text_head.", "itm_head.")
_OLD_BUFFERS = ("text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")
"""Constant buffers that old versions of transformers saved."""


def _without_foreign_parts(
    tensors: dict[str, Tensor], where: str
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


def _config(raw: dict[str, Any], file: Path, poolers: bool) -> Config:
    """Builds our configuration from theirs; missing values get transformers' defaults, which are ours too."""
    if raw.get("model_type", "flava") != "flava":
        raise CheckpointError(f"{file}: model_type is '{raw['model_type']}'; expected 'flava'")
    parts = {
        name: (raw.get(f"{name}_config") or {}) | (raw.get(f"{name}_config_dict") or {})
        for name in ("image", "text", "multimodal", "image_codebook")
    }
    for name in ("image", "text", "multimodal"):
        _require_supported(parts[name], f"{file}: {name}_config")
    model = FlavaConfig(
        image=_take(
            VisionEncoderConfig, {**parts["image"], **_square(parts["image"], f"{file}: image_config")}
        ),
        text=_take(FlavaTextConfig, parts["text"]),
        multimodal=_take(MultimodalEncoderConfig, parts["multimodal"]),
        projection_dim=raw.get("projection_dim", FlavaConfig.projection_dim),
        logit_scale_init=raw.get("logit_scale_init_value", FlavaConfig.logit_scale_init),
        initializer_range=raw.get("initializer_range", FlavaConfig.initializer_range),
        poolers=poolers,
    )
    codes = parts["image"].get("vocab_size", CodebookConfig.vocab_size)
    codebook = _take(CodebookConfig, {**parts["image_codebook"], "vocab_size": codes})
    codebook = dataclasses.replace(
        codebook,
        num_channels=parts["image_codebook"].get("input_channels", 3),
        image_size=model.image.grid_size * 2 ** (codebook.num_groups - 1),
    )
    weights = {name: float(raw.get(f"{name}_weight", 1.0)) for name in flava_objectives()}
    objectives = {
        name: dataclasses.replace(own, weight=weights[name]) for name, own in flava_objectives().items()
    }
    return Config(name="imported", model=model, codebook=codebook, objectives=objectives)


def _take(kind: type, values: dict[str, Any]) -> Any:
    """Builds one of our dataclasses from the fields of the same name."""
    return kind(
        **{f.name: values[f.name] for f in dataclasses.fields(kind) if values.get(f.name) is not None}
    )


def _square(values: dict[str, Any], where: str) -> dict[str, int]:
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


def _require_supported(values: dict[str, Any], where: str) -> None:
    """Rejects settings with which the same weights would compute something else here."""
    wanted = {
        "hidden_act": "gelu",
        "qkv_bias": True,
        "use_cls_token": True,
        "mask_token": True,
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0,
    }
    for name, value in wanted.items():
        if values.get(name, value) != value:
            raise CheckpointError(f"{where}.{name} is {values[name]!r}; this model supports only {value!r}")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises: CheckpointError."""
    try:
        data = loads(read_small(path))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing; give the folder that save_pretrained wrote or a whole snapshot of the Hub"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds {type(data).__name__} instead of an object")
    return data
