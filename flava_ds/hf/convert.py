"""Converts other programs' models of any family for initial_weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.families.bert_layouts import require
from flava_ds.families.flava.vit import vit_settings, vit_weights
from flava_ds.hf.files import read_file, read_folder, read_json, write_tensors
from flava_ds.hf.foreign import ENCODERS, open_file, open_folder, write_imported


def convert_folder(path: Path, out: Path) -> Path:
    """Converts a transformers or open_clip folder; of a ViT or BEiT, the image encoder. Returns `out`.

    Raises: CheckpointError.
    """
    file = path / "config.json"
    settings = read_json(file) if file.is_file() else {}
    if settings.get("model_type") in ENCODERS:
        require(settings, vit_settings(VisionEncoderConfig()), str(file))
        return _write_vit(read_folder(path), path, out)
    return write_imported(open_folder(path), out)


def convert_file(path: Path, out: Path) -> Path:
    """Converts an open_clip state dict, or a ViT-B/16 or BEiT-B/16 as an image encoder; then the rest starts
    anew.

    Takes a safetensors file, a state dict, or the full checkpoints of DINO (its teacher) and BEiT. Returns
    `out`.

    Raises: CheckpointError.
    """
    found = open_file(path)
    if found is not None:
        return write_imported(found, out)
    return _write_vit(read_file(path, nested=("teacher", "model")), path, out)


def _write_vit(state: Mapping[str, Tensor], path: Path, out: Path) -> Path:
    weights = vit_weights(state, VisionEncoderConfig(), str(path))
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(weights, out)
    return out
