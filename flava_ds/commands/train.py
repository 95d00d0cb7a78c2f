"""`flava-ds train`: checks what can be checked, then becomes the launcher's command; or rehearses it all."""

from __future__ import annotations

import argparse
import errno
import logging
import os
from typing import TYPE_CHECKING, Any

from flava_ds.config import Config
from flava_ds.config.run_folder import check_home
from flava_ds.errors import UserError
from flava_ds.ranks import launch
from flava_ds.recipes import check_code
from flava_ds.recipes.outside import absolute

if TYPE_CHECKING:
    from flava_ds.training.task import Task


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments beside the recipe."""
    command.add_argument(
        "--ranks", type=int, help="processes on this machine (default: one per GPU, at least one)"
    )
    command.add_argument(
        "--master-port", type=int, help="rendezvous port of the deepspeed launcher (default: a free one)"
    )
    command.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="start all ranks again after a failure, N times at most, through torchrun",
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="check recipe, data, codebook and checkpoints, print parameters, epochs, memory and the "
        "command, and stop",
    )


def run(config: Config, options: argparse.Namespace, overrides: list[str]) -> int:
    """Checks the configuration and its inputs, then becomes the launcher's command; or rehearses it.

    Raises: UserError.
    """
    check_options(options)
    check_code(options.recipe, config, overrides, options.plugin)
    check_home(options.recipe, config, overrides)
    ranks = check_run(options, config)
    command = compose(options, options.recipe, overrides, ranks, options.plugin)
    if not options.dry_run:
        command.replace_process()  # does not return
    own = dict(os.environ)
    os.environ.update(command.environment)  # as the ranks have it
    try:
        for line in rehearse(config, ranks):
            print(line)
    finally:
        os.environ.clear()
        os.environ.update(own)
    print(command)
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError for options of `flava-ds train` that cannot work."""
    if options.max_restarts < 0:
        raise UserError(f"--max-restarts {options.max_restarts}: use at least 0")
    if options.master_port is not None and not 0 < options.master_port < 2**16:
        raise UserError(f"--master-port {options.master_port}: use a port from 1 to {2**16 - 1}")
    if options.max_restarts and options.master_port is not None:
        raise UserError(
            "--master-port is for the deepspeed launcher; with --max-restarts, torchrun takes a free "
            "port, so leave it out"
        )


def check_run(options: argparse.Namespace, config: Config) -> int:
    """Looks for what a run reads and whether its batches divide; returns the ranks that it will have.

    Raises: UserError naming what is missing or does not divide.
    """
    if options.ranks is not None:
        launch.check_batches(config, options.ranks)  # first, because counting GPUs imports torch
    launch.check_inputs(config)
    ranks = options.ranks or max(1, launch.count_gpus())
    launch.check_batches(config, ranks)
    return ranks


def compose(
    options: argparse.Namespace, recipe: str, overrides: list[str], ranks: int, plugins: list[str]
) -> launch.Launch:
    """Returns the command that trains `recipe` with `overrides` on `ranks` ranks of this machine."""
    recipe, gpus = absolute(recipe), launch.count_gpus()
    words = [*(f"--plugin={absolute(place)}" for place in plugins), *overrides]
    if options.max_restarts:
        return launch.plan_supervised(
            recipe, words, ranks=ranks, gpus=gpus, restarts=options.max_restarts, debug=options.debug
        )
    return launch.plan_launch(
        recipe, words, ranks=ranks, gpus=gpus, port=options.master_port, debug=options.debug
    )


def rehearse(config: Config, ranks: int) -> list[str]:
    """Does what ranks do before their first step, as far as it needs no weights, and says what the run will
    be: tokenizer, codebook, index, sources, model, evaluation tasks with their data, and the checkpoint that
    the run would go on from. Shards without an index get one, as they would at the start of the run.

    Raises: UserError with what would end the run.
    """
    from flava_ds.build import note_vocabulary, prepare_shards
    from flava_ds.checkpoints import initial_weights
    from flava_ds.codebook.image_codebook import load_codebook
    from flava_ds.data.first_look import look_over
    from flava_ds.data.loader import StepLoader
    from flava_ds.evaluation.live import find_tasks
    from flava_ds.preview import meta_task, preview

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_folder(config)
    task = meta_task(config)
    if config.computes_image_codes and config.codebook_weights not in (None, "random"):
        codebook = load_codebook(str(config.codebook_weights), config.codebook)
        task.fingerprints["codebook"] = codebook.fingerprint()
    note_vocabulary(task, config)
    saved = check_checkpoint(config, task)
    if config.initial_weights is not None:
        initial_weights.check_vocabulary(config.initial_weights, task.fingerprints)
        initial_weights.initial_weights(task, config.initial_weights, str(config.model.type))
        initial_weights.warn_of_other_settings(config.initial_weights, config)
    tables = prepare_shards(config)
    start_step = saved["step"] if saved else 0
    loader = StepLoader(config, world_size=ranks, start_step=start_step, tables=tables)
    look_over(config, loader.sources)
    if saved:
        loader.check_state(saved["data"])
    if config.evaluation.every_steps:
        find_tasks(config, task)
    return preview(config, task, loader, ranks, "cuda" if launch.count_gpus() else "cpu")


def check_folder(config: Config) -> None:
    """Raises CheckpointError if the run's folder or that of its checkpoints, or the first above it that is
    there, takes no file.
    """
    from flava_ds.checkpoints import files
    from flava_ds.checkpoints.checkpoint import usable

    with usable(config):
        for place in (config.run_path, files.place_of(config.run_path, config).local):
            if place is not None:
                above = (place.absolute(), *place.absolute().parents)
                there = next(folder for folder in above if os.path.lexists(folder))
                if not there.exists():
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(there))
                if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                    number = errno.EACCES if there.is_dir() else errno.ENOTDIR
                    raise OSError(number, os.strerror(number), str(there))


def check_checkpoint(config: Config, task: Task) -> dict[str, Any] | None:
    """Returns the state.json that the run would go on from; None for a fresh start.

    Raises: CheckpointError when its checkpoint is of another model, or of other frozen networks.
    """
    from flava_ds.checkpoints import files
    from flava_ds.checkpoints.fits import check_family, check_frozen, of_this_model
    from flava_ds.checkpoints.reader import CheckpointReader, check_shapes

    place = files.place_of(config.run_path, config)
    if not config.checkpoint.resume or (folder := files.latest(place)) is None:
        return None
    check_family(folder, str(config.model.type))
    reader = CheckpointReader(folder)
    reader.close()  # state.json has been read
    with of_this_model(folder):
        shapes = {name: tuple(parameter.shape) for name, parameter in task.named_parameters()}
        check_shapes(reader.shapes, shapes, str(folder), of_parameters=True)
    check_frozen(reader, task.fingerprints)
    return reader.state
