"""Prepares a run's folder and resumes from its latest checkpoint, on all ranks."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

import torch

from flava_ds import config as configuration
from flava_ds.checkpoints import files
from flava_ds.checkpoints.contents import verify
from flava_ds.checkpoints.fits import (
    changed_settings,
    check_family,
    check_frozen,
    check_model,
    check_optimizer,
)
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import CheckpointReader
from flava_ds.config import Config
from flava_ds.errors import CheckpointError
from flava_ds.ranks import run_lock
from flava_ds.ranks.distributed import World, from_main, log, together
from flava_ds.ranks.lock_files import NAME
from flava_ds.storage.atomic import write_whole
from flava_ds.training import fragments
from flava_ds.training.engine import Engine


def prepare(config: Config, world: World) -> None:
    """Locks the run's folder and removes what an interrupted save left behind.

    With checkpoint.resume off, moves the checkpoints, the log and the results of an earlier run of this name
    into `previous_<n>` next to them.

    Raises: CheckpointError on every rank when another run holds the folder, or its files cannot be moved.
    """
    with together(world), usable(config):
        if world.is_main:
            alone = world.size == 1
            _prepare_folders(config, math.inf if alone else config.engine.communication_timeout_s)


@contextmanager
def usable(config: Config) -> Iterator[None]:
    """Says of an OSError inside what it means for the run's folder."""
    try:
        yield
    except OSError as error:
        said: object = error
        if isinstance(error, FileExistsError) and os.path.islink(error.filename):
            said = f"'{error.filename}' is a link to '{os.readlink(error.filename)}', which is not there"
        raise CheckpointError(
            f"{config.run_path} cannot be used ({said}); make room or make it writable, or set "
            "logging.run_directory"
        ) from error


def _prepare_folders(config: Config, patience_s: float) -> None:
    """Does rank 0's part of `prepare`, for which the others wait `patience_s`."""
    place, folders = files.place_of(config.run_path, config), [config.run_path]
    if place.local is not None and place.local != config.run_path / files.FOLDER:
        folders.insert(0, place.local)  # checkpoint.directory lies elsewhere and needs a lock, too
    for folder in folders:
        try:
            run_lock.hold(folder, patience_s)
        except OSError as error:
            if error.errno != errno.ENOSPC or (folder / NAME).exists():
                raise
            # Leftovers may be what fills the disk. They can go without the lock: a new lock file could not
            # be created, so no other run holds this folder.
            _remove_leftovers(place)
            run_lock.hold(folder, patience_s)
    if place.local is None:  # the lock has shown that a folder can be written
        place.try_writing()
        if place.is_object_storage:
            run_lock.hold(place.url, patience_s)
    place.look_again()
    if not config.checkpoint.resume and (moved := files.set_aside(config.run_path, place)):
        log.info("an earlier run of this name was moved to %s", moved)
    _remove_leftovers(place)


def _remove_leftovers(place: Place) -> None:
    """Removes what interrupted saves left behind, and logs it."""
    for name in files.remove_leftovers(place):
        log.info("removed %s, left by an interrupted save", name)


def record(config: Config, world: World) -> None:
    """Writes the run's config.json.

    Call it only once nothing can refuse the run any more: until then the file describes an earlier run of
    this name.

    Raises: CheckpointError on all ranks when it cannot be written; the earlier file is intact.
    """
    with together(world), usable(config):
        if world.is_main:
            write_whole(config.run_path / files.CONFIG, configuration.dumps(config))


class Resumed(NamedTuple):
    """What a resumed run needs: updates done, the state of the data, the state of the spike watch."""

    step: int
    data: dict
    spikes: dict


def resume(engine: Engine, config: Config) -> Resumed | None:
    """Continues from the latest checkpoint, or from the newest undamaged one; None for a fresh start.

    The number of ranks, the ZeRO stage, offloading and precision may differ from those of the run that wrote
    it: each rank reads the elements that it holds now.

    Raises: CheckpointError on every rank when all checkpoints are damaged, or the newest undamaged one
    belongs to another model or optimizer.
    """
    world, place = engine.world, files.place_of(config.run_path, config)
    with together(world):
        if world.local_rank == 0:  # what one process of a machine sees, all of it see
            place.look_again()
    reader = newest_sound(world, _to_go_on_from(place))
    if reader is None:
        log.info("no checkpoint under %s: a fresh start", place)
        return None
    with closing(reader):
        with together(world):  # first, because its error is clearer than one about missing tensors
            check_family(reader.folder, config.model.type)
            check_optimizer(reader.folder, config.optimizer.type)
        resumed = restore(engine, reader)
    if world.is_main and (changed := changed_settings(reader.folder, config)):
        log.info("settings that differ from the checkpoint's: %s", "; ".join(changed))
    return resumed


def _to_go_on_from(place: Place) -> Iterator[Place]:
    """Yields the latest checkpoint and those before it, newest first. Says so if `latest` names another."""
    if (folder := files.latest(place)) is None:
        return
    if (name := files.named(place)) != folder.name:
        log.error(
            "%s %s; going on from %s",
            place / files.LATEST,
            "is missing" if name is None else f"names '{name}', which is gone",
            folder,
        )
    yield folder
    step = files.step_of(folder.name)
    older = [place / name for name in files.complete(place) if files.step_of(name) < step]
    yield from reversed(older)


def newest_sound(world: World, folders: Iterator[Place]) -> CheckpointReader | None:
    """Opens the first undamaged checkpoint, which the caller closes; None where there are none at all.

    Rank 0 alone iterates over `folders`, so that all ranks try the same, and takes only as many as it needs.

    Raises: CheckpointError on every rank when all are damaged, or rank 0 cannot list them.
    """
    folder = _next(world, folders)
    while folder is not None:
        try:
            return check(world, folder)
        except CheckpointError as error:
            before = _next(world, folders)
            if before is None:
                raise
            if world.is_main:
                log.error("%s; going on from the checkpoint before, %s", error, before)
            folder = before
    return None


def _next(world: World, folders: Iterator[Place]) -> Place | None:
    """Returns rank 0's next folder on all ranks; None after the last."""
    found = None
    with together(world):
        if world.is_main:
            found = next(folders, None)
    return from_main(world, found)


def check(world: World, folder: Place) -> CheckpointReader:
    """Compares a checkpoint's files with its manifest, each rank a share of them, and their contents with
    its state. Returns what has read the headers of all files, which takes long; the caller closes it.

    Raises: CheckpointError on every rank when a file is missing, truncated, changed or contradicts the state.
    """
    with together(world):
        verify(folder, world.rank, world.size)
    with ExitStack() as opened:
        with together(world):
            reader = opened.enter_context(closing(CheckpointReader(folder)))
            reader.check_parts()
        opened.pop_all()  # sound on every rank
    return reader


def restore(engine: Engine, reader: CheckpointReader) -> Resumed:
    """Restores the engine from an open checkpoint.

    Raises: CheckpointError on every rank when another model wrote it.
    """
    world = engine.world
    with together(world):
        check_model(engine, reader)
        check_frozen(reader, engine.module.fingerprints)
    fragments.begin_loading(engine)
    with together(world):  # no collectives inside: one rank's damaged file must not leave others waiting
        _load(engine, reader)
    fragments.finish_loading(engine)
    engine.restored()
    saved = {"ranks": reader.state["world_size"], **reader.state["layout"]}
    now = {"ranks": world.size, **engine.layout()}
    changed = [f"{key} {saved.get(key)} -> {value}" for key, value in now.items() if saved.get(key) != value]
    log.info("continuing from %s%s", reader.folder, f" with {', '.join(changed)}" if changed else "")
    return Resumed(reader.state["step"], reader.state["data"], reader.state["spikes"])


def _load(engine: Engine, reader: CheckpointReader) -> None:
    """Reads this rank's elements, the counters, buffers and random states.

    Raises: CheckpointError when the checkpoint lacks some of them.
    """
    fragments.set_update_counts(engine, reader.state["optimizer_updates"])
    with torch.no_grad():
        for fragment in fragments.held(engine):
            for key, target in fragment.tensors.items():
                target.copy_(reader.read(key, fragment.name, fragment.start, fragment.numel))
        buffers = reader.buffers()
        for name, buffer in engine.module.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
        states = engine.state_tensors()
        for name, saved in reader.states(states).items():
            states[name].copy_(saved)
    engine.set_counters(reader.state, reader.state["step"])
    generators = reader.generators(engine.world.rank)
    try:
        if "cpu" in generators:
            torch.set_rng_state(generators["cpu"])
        if "cuda" in generators and engine.world.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"], engine.world.device)
    except RuntimeError as error:
        raise CheckpointError(
            f"{reader.folder}: rank {engine.world.rank}'s random state cannot be used ({error}); use another "
            "checkpoint"
        ) from error
