"""`flava-ds train` for a sequence of stages: runs each to its end, passes weights on, and goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flava_ds import config as configuration
from flava_ds.commands import train as train_command
from flava_ds.config import Config
from flava_ds.config.evaluation import files_of
from flava_ds.config.plain_files import loads
from flava_ds.errors import ConfigError
from flava_ds.recipes.outside import is_outside
from flava_ds.recipes.stages import Stage, Stages, resolve_stages

if TYPE_CHECKING:
    from flava_ds.checkpoints.place import Place

FOLDER = "stages"
"""Where a sequence's folder keeps each stage's configuration and the weights that it begins with."""
SOURCES = "stages"
"""Key in the metadata of those weights: JSON of stage -> SHA-256 of its checkpoint's manifest."""


def train(sequence: Stages, options: argparse.Namespace, overrides: list[str]) -> int:
    """Checks every stage, then trains those that are not finished, one after the other. Returns the exit
    status of the first that does not come to its end: 128 + signal when it was stopped.

    Raises: UserError for what a stage cannot read, or when the next one has parts of another shape.
    """
    sequence = resolve_stages(sequence, overrides)
    train_command.check_options(options)
    left = [stage for stage in sequence.stages if finished_with(stage) is None]
    ranks = {stage.name: train_command.check_run(options, stage.config) for stage in left}
    check_shapes(sequence)
    rehearsed = {stage.name: train_command.rehearse(stage.config, ranks[stage.name]) for stage in left}
    # What a file outside of the package defines beside its function may be in the stages' configurations.
    own = [options.recipe.rpartition(":")[0]] if is_outside(options.recipe) else []
    plugins = [*options.plugin, *own]
    for number, stage in enumerate(sequence.stages, start=1):
        where = f"stage {number} of {len(sequence.stages)}, '{stage.name}'"
        if (changed := finished_with(stage)) is not None:
            print(f"{where}: finished, {stage.config.run_path} is left as it is", flush=True)
            for setting in changed:
                print(f"  it was trained with another setting: {setting}", flush=True)
            tell_of_others(sequence, stage)
            continue
        if stage.name not in ranks:  # it had finished, and its folder was removed meanwhile
            ranks[stage.name] = train_command.check_run(options, stage.config)
        config = stage.config if options.dry_run else with_inherited(sequence, stage)
        file = folder_of(config) / f"{stage.name}.json"
        command = train_command.compose(options, str(file), said_again(config), ranks[stage.name], plugins)
        if options.dry_run:
            print(f"{where}; {file} is written when it begins")
            print(*rehearsed[stage.name], command, sep="\n")
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        configuration.save(config, file)
        print(f"{where}: {config.training.total_steps} steps, in {config.run_path}", flush=True)
        status = command.wait()
        if status != 0:
            print(f"{where}: ended with status {status}; the same command goes on from here", flush=True)
            return status
    return 0


def said_again(config: Config) -> list[str]:
    """Returns the options that name or allow code, which a stage's file cannot."""
    tasks, sources = config.evaluation.tasks, config.data.sources
    named = ["--evaluation.tasks", *tasks] if files_of(tasks) else []
    return named + [f"--data.sources.{name}.allow-code" for name, own in sources.items() if own.allow_code]


def folder_of(config: Config) -> Path:
    """Returns the folder beside the stages' runs."""
    return config.run_path.parent / FOLDER


def finished_with(stage: Stage) -> list[str] | None:
    """Returns in which settings a finished stage differs from what is asked for now; None while it is not
    finished.
    """
    from flava_ds.checkpoints.fits import changed_settings
    from flava_ds.checkpoints.inheritance import finished

    folder = finished(stage.config)
    if folder is None:
        return None
    return [
        line for line in changed_settings(folder, stage.config) if not line.startswith("initial_weights ")
    ]


def with_inherited(sequence: Stages, stage: Stage) -> Config:
    """Returns a stage's configuration with the weights that earlier ones pass on, which it writes unless the
    stage goes on from a checkpoint of its own. What these lack comes from its own initial_weights, if it has
    some.

    Raises: CheckpointError when those are of another family or cannot be read.
    """
    from flava_ds.checkpoints.files import digest_of
    from flava_ds.checkpoints.inheritance import begun, passed_on
    from flava_ds.storage.tensor_files import save_tensors

    if not stage.inherits:
        return stage.config
    out = inherited_file(stage)
    if out.is_file() and begun(stage.config):
        tell_of_others(sequence, stage)
    else:
        folders, weights = sources_of(sequence, stage), _own_weights(stage.config)
        for inherited in stage.inherits:
            folder = folders[inherited.stage]
            print(f"  it begins with {', '.join(inherited.prefixes)} of {folder}", flush=True)
            weights |= passed_on(folder, inherited.prefixes, inherited.average)
        digests = json.dumps({name: digest_of(folder) for name, folder in folders.items()})
        save_tensors(weights, out, {"format": "pt", SOURCES: digests})
    return dataclasses.replace(stage.config, initial_weights=str(out))


def inherited_file(stage: Stage) -> Path:
    """Returns the file of the weights that a stage begins with."""
    return folder_of(stage.config) / f"{stage.name}.safetensors"


def sources_of(sequence: Stages, stage: Stage) -> dict[str, Place]:
    """Returns the checkpoints that finished stages pass on to this one, by stage. Raises: CheckpointError."""
    from flava_ds.checkpoints.inheritance import to_pass_on

    configs = {own.name: own.config for own in sequence.stages}
    return {inherited.stage: to_pass_on(configs[inherited.stage]) for inherited in stage.inherits}


def tell_of_others(sequence: Stages, stage: Stage) -> None:
    """Says which stages have been trained again since this one began from their weights.

    Raises: CheckpointError when the file cannot be read.
    """
    from flava_ds.checkpoints.files import digest_of
    from flava_ds.storage.files import LocalFile
    from flava_ds.storage.tensor_files import TensorFile

    if not stage.inherits or not (file := inherited_file(stage)).is_file():
        return
    with closing(TensorFile(lambda: LocalFile(file), str(file))) as opened:
        began: dict[str, str] = loads(opened.metadata.get(SOURCES, "{}"))
    for name, folder in sources_of(sequence, stage).items():
        if began.get(name, now := digest_of(folder)) != now:
            print(
                f"  it began from another checkpoint of stage '{name}' than {folder}; remove "
                f"{stage.config.run_path} to train it again",
                flush=True,
            )


def _own_weights(config: Config) -> dict[str, Any]:
    """Reads the weights that a stage names itself. Raises: CheckpointError."""
    from flava_ds.checkpoints.fits import check_family
    from flava_ds.checkpoints.reader import load_weights, locate

    if config.initial_weights is None:
        return {}
    check_family(locate(config.initial_weights), config.model.type)
    print(f"  it begins with {config.initial_weights}", flush=True)
    return load_weights(config.initial_weights)


def check_shapes(sequence: Stages) -> None:
    """Compares what stages pass on with what the receiving models have, before anything is trained.

    Raises: ConfigError naming the stages, the parameter and both shapes.
    """
    shapes = {
        stage.name: shapes_of(stage.config) for stage in sequence.stages if _takes_part(sequence, stage)
    }
    for stage in sequence.stages:
        for inherited in stage.inherits:
            given = {
                name: shape
                for name, shape in shapes[inherited.stage].items()
                if name.startswith(inherited.prefixes)
            }
            for name, shape in given.items():
                own = shapes[stage.name].get(name)
                if own != shape:
                    found = f"has {list(own)}" if own is not None else "lacks it"
                    raise ConfigError(
                        f"stage '{inherited.stage}' passes on '{name}' of shape {list(shape)}, but stage "
                        f"'{stage.name}' {found}; give both the same model.image or model.text"
                    )


def _takes_part(sequence: Stages, stage: Stage) -> bool:
    return bool(stage.inherits) or any(
        inherited.stage == stage.name for other in sequence.stages for inherited in other.inherits
    )


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a configuration's task, without memory for any."""
    from flava_ds.preview import meta_task

    return {name: tuple(parameter.shape) for name, parameter in meta_task(config).named_parameters()}


def described(sequence: Stages, overrides: list[str]) -> str:
    """Returns the stages' configurations and what they inherit, as JSON."""
    sequence = resolve_stages(sequence, overrides)
    stages: dict[str, Any] = {
        stage.name: {
            "inherits": [dataclasses.asdict(inherited) for inherited in stage.inherits],
            "config": configuration.to_dict(stage.config),
        }
        for stage in sequence.stages
    }
    return json.dumps({"name": sequence.name, "stages": stages}, indent=2)


def help_of(sequence: Stages) -> str:
    """Returns what `--help` says of a sequence."""
    lines = [f"{sequence.name} runs these stages, each an ordinary run in {sequence.name}/STAGE:"]
    for stage in sequence.stages:
        taken = ", ".join(f"{', '.join(own.prefixes)} of {own.stage}" for own in stage.inherits)
        steps, objectives = stage.config.training.total_steps, ", ".join(stage.config.objectives)
        began = f", beginning with {taken}" if taken else ""
        lines.append(f"  {stage.name}: {steps} steps of {objectives}{began}")
    lines.append(
        "--FIELD VALUE changes all of them, --STAGE.FIELD VALUE one; a recipe's --help lists fields."
    )
    return "\n".join(lines)
