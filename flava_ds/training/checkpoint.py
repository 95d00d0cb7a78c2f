"""Saving and resuming a run, all ranks together: DeepSpeed's shards for an exact continuation, safetensors for everybody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flava_ds import config as configuration
from flava_ds.config import Config
from flava_ds.errors import CheckpointError
from flava_ds.training import checkpoint_files as files
from flava_ds.training.checkpoint_files import load_weights
from flava_ds.training.deepspeed_fixes import safe_unpickling
from flava_ds.training.distributed import World, barrier, gather_objects, log, raise_together
from flava_ds.training.engine import Engine

__all__ = ["load_weights", "load_initial_weights", "prepare", "record", "resume", "save"]

SHARDS = "deepspeed"
"""Folder, inside a checkpoint, of DeepSpeed's own files."""


def prepare(config: Config, world: World) -> None:
    """Creates the run's folder and removes what an interrupted save left behind.

    With checkpoint.resume off, the checkpoints and the log of an earlier run of this name are moved into `previous_<n>` beside them.
    """
    if world.is_main:
        if not config.checkpoint.resume and (moved := files.set_aside(config.run_path)):
            log.info("an earlier run of this name was moved to %s", moved)
        (config.run_path / files.FOLDER).mkdir(parents=True, exist_ok=True)
        for name in files.remove_leftovers(config.run_path):
            log.info("removed %s, left by an interrupted save", name)
    barrier(world)


def record(config: Config, world: World) -> None:
    """Writes the run's config.json; to be called when nothing can refuse the run any more, as an earlier run of this name owns it till then."""
    if world.is_main:
        configuration.save(config, config.run_path / "config.json")


def save(engine: Engine, config: Config, step: int, data_state: dict[str, Any]) -> Path:
    """Writes and publishes the checkpoint after `step` updates; returns its folder.

    All ranks write into one folder, so the run directory must be on a file system that all hosts share.

    Raises: CheckpointError on every rank when one cannot write, or does not see the others' files.
    """
    world, final = engine.world, config.run_path / files.FOLDER / files.name_of(step)
    temporary = final.with_name(final.name + f".tmp-{world.size}ranks")
    with _raising_together(world, temporary):
        if world.is_main:
            files.remove_leftovers(config.run_path)
            temporary.mkdir(parents=True)
    with _raising_together(world, temporary):
        engine.deepspeed.save_checkpoint(str(temporary), tag=SHARDS, client_state={}, save_latest=False)
        _save_generators(temporary / _generators_name(world.rank), world)
    with _raising_together(world, temporary):
        _save_weights(engine, temporary / files.WEIGHTS)
    with _raising_together(world, temporary):
        if world.is_main:
            _finish_folder(engine, config, temporary, step, data_state)
    mine = files.files_of(temporary)[world.rank :: world.size]
    described = {file: entry for part in gather_objects(world, files.describe(temporary, mine)) for file, entry in sorted(part.items())}
    if world.is_main:
        files.publish(temporary, final, dict(sorted(described.items())))
        files.prune(config.run_path, config.checkpoint.keep_last)
        log.info("saved %s", final)
    barrier(world)
    return final


def _finish_folder(engine: Engine, config: Config, folder: Path, step: int, data_state: dict[str, Any]) -> None:
    """Adds configuration and state, once all ranks have written.

    Raises: CheckpointError when a rank's file is not there.
    """
    for script in folder.glob("*.py"):  # DeepSpeed's conversion scripts, which unpickle anything
        script.unlink()
    configuration.save(config, folder / "config.json")
    size = engine.world.size
    state = {"step": step, "world_size": size, "zero": engine.layout(), "skipped": int(engine.skipped), "data": data_state}
    files.write_text(folder / "state.json", json.dumps(state, indent=1) + "\n")
    missing = [rank for rank in range(size) if not (folder / _generators_name(rank)).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: rank 0 does not see what rank {missing[0]} wrote; logging.run_directory must be on a shared file system")


@contextmanager
def _raising_together(world: World, folder: Path) -> Iterator[None]:
    """Turns what one rank cannot write into one error of all ranks. torch reports a full disk as RuntimeError."""
    error = None
    try:
        yield
    except CheckpointError as problem:
        error = problem
    except (OSError, RuntimeError) as problem:
        error = CheckpointError(
            f"{folder} cannot be written ({str(problem).splitlines()[0][:200]}); make room or mend the disk, then start the same command again"
        )
    raise_together(world, error)


def resume(engine: Engine, config: Config) -> tuple[int, dict[str, Any]] | None:
    """Continues from the run's latest checkpoint; returns (updates done, saved data state), or None for a fresh start.

    Raises: CheckpointError on every rank when the checkpoint is damaged or was written by another model, number of ranks, precision or
    ZeRO stage.
    """
    world, folder, error = engine.world, None, None
    try:
        folder = files.latest(config.run_path)
        if folder is not None:
            files.verify(folder, sorted(files.read_manifest(folder))[world.rank :: world.size])
            _check_fits(engine, folder)
    except CheckpointError as problem:
        error = problem
    raise_together(world, error)
    if folder is None:
        log.info("no checkpoint under %s: a fresh start", config.run_path / files.FOLDER)
        return None
    state = _read_state(folder)
    try:
        with safe_unpickling():
            engine.deepspeed.load_checkpoint(str(folder), tag=SHARDS, load_lr_scheduler_states=False)
        engine.skipped.fill_(state["skipped"])
        _load_generators(folder / _generators_name(world.rank), world)
    except CheckpointError as problem:
        error = problem
    raise_together(world, error)
    log.info("continuing from %s", folder)
    return state["step"], state["data"]


def load_initial_weights(module: nn.Module, path: str) -> None:
    """Copies the tensors of `path` into the module's parameters and buffers of the same name; others stay as initialised.

    Raises: CheckpointError when a shape differs, or no name fits.
    """
    weights, own = load_weights(path), module.state_dict()
    known = {name: tensor for name, tensor in weights.items() if name in own}
    if not known:
        raise CheckpointError(
            f"initial_weights '{path}': none of its {len(weights)} tensors is one of this model's, e.g. '{next(iter(weights), '')}' "
            f"against '{next(iter(own))}'; convert other layouts with `flava-ds convert FROM --to flava_ds OUT` first"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in known.items()}
    files.check_shapes(shapes, {name: tuple(own[name].shape) for name in known}, f"initial_weights '{path}'")
    module.load_state_dict(known, strict=False)
    log.info("%d of the model's %d tensors come from %s, %d of that file are not used", len(known), len(own), path, len(weights) - len(known))


def _read_state(folder: Path) -> dict[str, Any]:
    """Returns a checkpoint's state.json.

    Raises: CheckpointError when it is missing or lacks a key.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return {key: state[key] for key in ("step", "world_size", "zero", "skipped", "data")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'state.json'} cannot be used ({type(error).__name__}: {error}); use another checkpoint") from error


def _check_fits(engine: Engine, folder: Path) -> None:
    """Raises CheckpointError unless `folder` holds this model, sharded as this run shards it."""
    state = _read_state(folder)
    try:
        files.check_shapes(files.shapes_of(folder / files.WEIGHTS), engine.shapes(), str(folder / files.WEIGHTS))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; go on with the settings in {folder / 'config.json'}, or start a new run with another --name") from error
    for what, saved, now in (
        ("ranks", state["world_size"], engine.world.size),
        *((key, state["zero"].get(key), value) for key, value in engine.layout().items()),
    ):
        if saved != now:
            raise CheckpointError(
                f"{folder} was written with {what} {saved} and this run has {now}; continue with {what} {saved}, or start a new run "
                f"(another --name) with --initial-weights {folder}, which takes the weights and begins with fresh optimizer moments"
            )


def _save_weights(engine: Engine, path: Path) -> None:
    """Writes the whole model in fp32; every rank takes part in gathering, rank 0 writes."""
    weights = {}
    for name, tensor in engine.full_weights():
        if engine.world.is_main:
            weights[name] = tensor.contiguous()
    if engine.world.is_main:
        save_file(weights, path, metadata={"format": "pt"})


def _generators_name(rank: int) -> str:
    return f"generators_rank_{rank:05d}.safetensors"


def _save_generators(path: Path, world: World) -> None:
    """Writes this rank's random states; everything drawn per sample or step is a function of the step and needs none."""
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    save_file(states, path)


def _load_generators(path: Path, world: World) -> None:
    """Restores this rank's random states."""
    states = load_file(path)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], world.device)
