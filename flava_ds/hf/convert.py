"""Converts foreign models of any family, recognized by configuration or names, for initial_weights."""

from __future__ import annotations

from pathlib import Path

from flava_ds.config.family import FamilyConfig
from flava_ds.config.variants import choices
from flava_ds.errors import CheckpointError
from flava_ds.hf import families
from flava_ds.hf.import_weights import (
    import_folder,
    read_file,
    read_folder,
    read_json,
    write_imported,
    write_imported_vit,
)

OPEN_CLIP = "open_clip_config.json", "open_clip_"
"""The configuration in an open_clip folder, and the prefix of its weight files."""


def convert_folder(path: Path, out: Path) -> Path:
    """Converts a transformers or open_clip folder for initial_weights. Returns `out`.

    Raises: CheckpointError.
    """
    if (path / OPEN_CLIP[0]).is_file():
        settings, tensors = read_json(path / OPEN_CLIP[0]), read_folder(path, OPEN_CLIP[1])
        family = families.recognized(tensors)
        if family is None:
            raise CheckpointError(
                f"{path}: an open_clip model that no family here supports; it has '{next(iter(tensors))}'"
            )
    else:
        settings = read_json(path / "config.json")
        family = settings.get("model_type", "flava")
        if family not in choices(FamilyConfig):
            known = ", ".join(choices(FamilyConfig))
            raise CheckpointError(f"{path / 'config.json'}: model_type is '{family}'; supported are {known}")
        if family == "flava":
            return write_imported(import_folder(path), out)
        tensors = read_folder(path)
    return families.write_imported(families.read(family, settings, tensors, str(path)), out)


def convert_file(path: Path, out: Path) -> Path:
    """Converts an open_clip state dict, or a ViT-B/16, for initial_weights. Returns `out`.

    Raises: CheckpointError.
    """
    tensors = read_file(path, nested=("state_dict", "teacher"))
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if (family := families.recognized(tensors)) is not None:
        return families.write_imported(families.read(family, None, tensors, str(path)), out)
    return write_imported_vit(path, out)
