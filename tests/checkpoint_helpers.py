"""Checkpoints for tests that have no engine: whole weights, split over pretended ranks and published by the
calls that a run makes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from flava_ds.checkpoints import files
from flava_ds.checkpoints.contents import optimizer_name, weights_name
from flava_ds.checkpoints.place import Place
from flava_ds.config import Config, to_dict
from flava_ds.storage.tensor_files import HashingWriter, write_tensors

UNEVENTFUL = {
    **{
        "updates_skipped": {"skipped": 0, "skipped_in_a_row": 0, "longest_skip": 0},
        "optimizer_updates": {},
        "loss_scaler": None,
        "metric": None,
        "data": {},
        "frozen": {},
    },
    "spikes": {"calm": True, "rollbacks": 0, "recent": {}, "streaks": {}},
}
"""The part of a state that a checkpoint without an engine has nothing to say about."""


def write_checkpoint(
    place: Place | Path, step: int, weights: dict[str, Tensor], config: Config | None = None, **state
) -> Place:
    """Publishes a checkpoint of two ranks: each parameter is cut after its first third."""
    place = place if isinstance(place, Place) else Place(place)
    staged, described = files.staging(place, step, 2), {}
    known = {
        "step": step,
        "world_size": 2,
        "parameters": {name: list(tensor.shape) for name, tensor in weights.items()},
        "buffers": [],
        "layout": {},
    }
    texts = {
        files.STATE: json.dumps({**UNEVENTFUL, **known, **state}),
        files.CONFIG: json.dumps(to_dict(config or Config(name="written"))),
    }
    tensors = {optimizer_name(0): ({}, {}), optimizer_name(1): ({}, {})}
    for rank in range(2):
        parts, starts = {}, {}
        for name, tensor in weights.items():
            flat, cut = tensor.detach().reshape(-1), tensor.numel() // 3
            starts[f"weight/{name}"] = rank * cut
            parts[f"weight/{name}"] = flat[cut:] if rank else flat[:cut]
        tensors[weights_name(rank)] = (parts, starts)
    for name, content in {**texts, **tensors}.items():
        with staged.create(name) as file:
            writer = HashingWriter(file)
            if isinstance(content, str):
                writer.write(content.encode())
            else:
                write_tensors(writer, content[0], {"format": "flava_ds", "starts": json.dumps(content[1])})
        described[name] = writer.described()
    return files.publish(place, staged, step, described)


def small_weights(value: float = 0.0) -> dict[str, Tensor]:
    """Two parameters, one of a single element."""
    return {"a": torch.full((2, 3), value), "scale": torch.tensor([value + 1.0])}
