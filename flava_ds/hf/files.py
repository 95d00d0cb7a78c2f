"""Reads and writes the files of other programs: safetensors, torch state dicts, JSON. Downloads nothing."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from flava_ds.checkpoints.reader import WEIGHTS
from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import CheckpointError
from flava_ds.storage.tensor_files import save_tensors


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
        f"{path}: has no model.safetensors, pytorch_model.bin or index of shards; copy the whole "
        "snapshot (a run needs no conversion: --initial-weights takes it)"
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
        raise CheckpointError(f"{path}: is not a flat state dict of tensors; save model.state_dict() alone")
    return dict(state)


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


def write_tensors(tensors: Mapping[str, Tensor], out: Path) -> None:
    """Writes model.safetensors in fp32, atomically. Raises: CheckpointError if it cannot be written."""
    save_tensors({name: tensor.detach().float() for name, tensor in tensors.items()}, out / WEIGHTS)
