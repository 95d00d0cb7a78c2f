"""Exports models of every family except FLAVA for transformers, and reads them from foreign files."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from flava_ds.config import Config, save
from flava_ds.config.family import FamilyConfig
from flava_ds.config.variants import choices, find
from flava_ds.errors import CheckpointError
from flava_ds.layouts import Foreign, Layouts
from flava_ds.storage.atomic import replacing


def layouts_of(family: str) -> Layouts | None:
    """Returns a family's support for foreign file layouts, or None."""
    module = find(FamilyConfig, family, "family").layouts
    return None if module is None else importlib.import_module(module).LAYOUTS


def recognized(names: Collection[str]) -> str | None:
    """Returns the family whose state dict has these names in a foreign layout, or None."""
    offers = ((family, layouts_of(family)) for family in choices(FamilyConfig))
    return next(
        (family for family, layouts in offers if layouts is not None and layouts.recognizes(names)), None
    )


def export(config: Config, weights: Mapping[str, Tensor], out: Path) -> None:
    """Exports a model as a transformers folder.

    Raises: CheckpointError if its family has no transformers layout, or the layout cannot hold the model.
    """
    layouts = layouts_of(config.model.type)
    if layouts is None:
        raise CheckpointError(
            f"models of family '{config.model.type}' cannot be written for transformers; use --to safetensors"
        )
    settings, tensors = layouts.write(config, weights)
    files = layouts.companions(config)
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, out)
    for name, content in {"config.json": settings, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        (out / name).write_text(text, encoding="utf-8")


def write_tensors(tensors: Mapping[str, Tensor], out: Path) -> None:
    """Writes model.safetensors in fp32, atomically."""
    # A split qkv gives views of one storage, which safetensors rejects: each gets its own.
    own = {name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(out / "model.safetensors") as temporary:
        save_file(own, temporary, metadata={"format": "pt"})


def read(
    family: str, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str
) -> Foreign:
    """Converts what another program wrote; see Layouts.read."""
    layouts = layouts_of(family)
    if layouts is None:
        raise CheckpointError(f"{where}: family '{family}' cannot be read from other programs' files")
    return layouts.read(settings, tensors, where)


def write_imported(found: Foreign, out: Path) -> Path:
    """Writes a folder for initial_weights: model.safetensors in our names, config.json. Returns `out`."""
    out.mkdir(parents=True, exist_ok=True)
    save(Config(name="imported", model=found.model, objectives=found.objectives), out / "config.json")
    write_tensors(found.weights, out)
    return out
