"""Compares a checkpoint with the run that would go on from it: settings, family, model and frozen parts."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from flava_ds.checkpoints import files
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import CheckpointReader, check_shapes
from flava_ds.config import Config, rebuild, to_dict
from flava_ds.config.plain_files import loads
from flava_ds.errors import CheckpointError, ConfigError
from flava_ds.plain_text import public
from flava_ds.training.engine import Engine
from flava_ds.watching.environment import flat


def changed_settings(folder: Place, config: Config) -> list[str]:
    """Lists the settings that have changed since a checkpoint was written, as "name before -> now". A field
    that is newer than the checkpoint had its default then.

    Raises: CheckpointError when its settings cannot be read.
    """
    settings = _settings(folder)
    with suppress(ConfigError):  # of a part that is unknown by now
        settings = json.loads(json.dumps(to_dict(rebuild(settings, checked=False))))
    before = flat(public(settings))
    now = flat(public(json.loads(json.dumps(to_dict(config)))))
    return [
        f"{name} {before.get(name)} -> {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _settings(folder: Place) -> dict[str, Any]:
    """Reads the settings that a checkpoint was written with. Raises: CheckpointError."""
    try:
        settings = loads(folder.read(files.CONFIG))
        if not isinstance(settings, dict):
            raise ValueError("is no JSON object")
    except ValueError as error:
        raise CheckpointError(
            f"{folder / files.CONFIG}: {error}; restore it, or move its folder away"
        ) from error
    return settings


@contextmanager
def of_this_model(folder: Place) -> Iterator[None]:
    """Adds to an error inside what to do with a checkpoint of another model."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; go on with the settings in {folder / files.CONFIG}, or start a new run with another "
            "--name"
        ) from error


def check_model(engine: Engine, reader: CheckpointReader) -> None:
    """Raises CheckpointError unless the checkpoint fits this model, its training states and its averages."""
    folder, states = reader.folder, engine.state_tensors()
    with of_this_model(folder):
        check_shapes(reader.shapes, engine.shapes(), str(folder))
        buffers = reader.buffer_shapes()
        own = {name: tuple(buffer.shape) for name, buffer in engine.module.named_buffers() if name in buffers}
        check_shapes(buffers, own, f"{folder}, buffers")
        check_shapes(
            reader.state_shapes() if states else {},
            {name: tuple(tensor.shape) for name, tensor in states.items()},
            f"{folder}, training states",
        )
        if lacking := lacked(reader.shapes, engine.shapes(), engine.module):
            raise CheckpointError(
                f"{folder} has '{lacking[0]}', which the module of that name lacks in this model"
            )
    for key, average in engine.averages.items():
        # What was frozen has none, and is refused for that, as it is where no average is kept.
        followed = sorted(average.followed & reader.state["optimizer_updates"].keys())
        if absent := [name for name in followed if not reader.holds(key, name)]:
            raise CheckpointError(
                f"{folder} has no '{key}' of '{absent[0]}', an average of weights, which this run keeps; if "
                f"{folder / files.CONFIG} keeps them too, the checkpoint is damaged, so copy it again or "
                "delete it to go on from the one before; if not, go on with those settings, or start a new "
                "run with another --name"
            )


SETTINGS = {"codebook": "codebook_weights", "vocabulary": "data.vocabulary"}
"""What a run takes as it is, and the setting that names its file."""


def check_frozen(reader: CheckpointReader, fingerprints: Mapping[str, str]) -> None:
    """Compares the frozen networks and the vocabulary that a run has had so far with those of now, by name.

    Raises: CheckpointError when one differs: targets or inputs would change in the middle of the run.
    """
    for name, fingerprint in reader.state["frozen"].items():
        if fingerprints.get(name, fingerprint) != fingerprint:
            weights = "RUN"
            if name == "vocabulary":  # whose words' rows would stand for others, so a run's are refused
                weights = "FILE, from `flava-ds convert RUN --to safetensors FILE`"
            raise CheckpointError(
                f"{reader.folder} was trained with another {name} than {SETTINGS[name]} names now; put the "
                "earlier file back, or start another run from its weights: --name OTHER --initial-weights "
                f"{weights}"
            )


def settings_of(found: Place | Path) -> Place:
    """Returns where the config.json of a checkpoint, or of a file of weights, lies if there is one."""
    return (found if isinstance(found, Place) else Place(found.parent)) / files.CONFIG


def family_of(found: Place | Path) -> str | None:
    """Returns the family that wrote `found`, by its config.json; None for bare tensors, another program's
    file, or one from before families existed.
    """
    settings = settings_of(found)
    try:
        return str(json.loads(settings.parent.read(settings.name))["model"]["type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_family(found: Place | Path, family: str | None) -> None:
    """Compares the family that wrote `found` with `family`, if that is known; else names and shapes decide.

    Raises: CheckpointError when they differ.
    """
    if (written_by := family_of(found)) not in (None, family):
        raise CheckpointError(
            f"{found} was written by family '{written_by}', this configuration is '{family}'; start a new "
            "run with another --name, or give --initial-weights bare tensors, from `flava-ds convert FROM "
            "--to safetensors OUT`"
        )


def check_optimizer(folder: Place, optimizer: str | None) -> None:
    """Compares the kind of optimizer that wrote a checkpoint with `optimizer`, by its configuration's type:
    what one keeps means something else to another, though it may have the same name and shape.

    Raises: CheckpointError when they differ.
    """
    written_by = _settings(folder).get("optimizer", {}).get("type")
    if written_by is None:
        raise CheckpointError(
            f"{folder / files.CONFIG} has no optimizer.type; restore it, or move its folder away"
        )
    if written_by != optimizer:
        raise CheckpointError(
            f"{folder} was written with {written_by}, and {optimizer} cannot go on from what it keeps; go on "
            f"with --optimizer {written_by}, or start a new run from the weights: --name NEW "
            f"--initial-weights {folder}"
        )


def lacked(names: Iterable[str], own: Collection[str], module: nn.Module) -> list[str]:
    """Returns the tensors whose module is here and has none of that name, so that it computes something else
    than it did with them.
    """
    modules = {name for name, _ in module.named_modules()}
    return [name for name in names if name not in own and name.rpartition(".")[0] in modules]
