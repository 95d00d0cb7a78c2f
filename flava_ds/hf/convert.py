"""Converts other programs' models of any family for initial_weights."""

from __future__ import annotations

from pathlib import Path

from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.families.flava.vit import vit_weights
from flava_ds.hf.files import read_file, write_tensors
from flava_ds.hf.foreign import open_file, open_folder, write_imported


def convert_folder(path: Path, out: Path) -> Path:
    """Converts a transformers or open_clip folder. Returns `out`. Raises: CheckpointError."""
    return write_imported(open_folder(path), out)


def convert_file(path: Path, out: Path) -> Path:
    """Converts an open_clip state dict, or a ViT-B/16 as an image encoder; then the rest starts anew.

    Takes a safetensors file, a state dict, or DINO's full checkpoint (its teacher). Returns `out`.

    Raises: CheckpointError.
    """
    found = open_file(path)
    if found is not None:
        return write_imported(found, out)
    weights = vit_weights(read_file(path, nested=("teacher",)), VisionEncoderConfig(), str(path))
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(weights, out)
    return out
