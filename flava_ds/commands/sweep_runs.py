"""The runs of a sweep before any of them starts: read, resolved, and compared with those of before."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flava_ds.config import Config
from flava_ds.errors import ConfigError, UserError, did_you_mean

if TYPE_CHECKING:
    from flava_ds.scaling.spec import Run, Spec
    from flava_ds.scaling.sweep import Sweep

UNCOMPARED = ("logging.", "checkpoint.", "data.num_workers ", "engine.communication_timeout_s ")
"""Settings of a run that may change between its start and the next look at its sweep."""
MOST_CHANGED = 3
"""Changed settings that a message names."""


def planned(options: argparse.Namespace) -> tuple[Sweep, Spec | None]:
    """Returns the sweep of a SPEC or of a folder; nothing is written yet. Raises: UserError."""
    from flava_ds.recipes.outside import absolute
    from flava_ds.scaling.sweep import MANIFEST, Sweep, merged

    place, commit = options.sweep, commit_now()
    plugins = tuple(absolute(own) for own in options.plugin)
    if place.is_dir():
        own = Sweep.open(place)
        return merged(own, dataclasses.replace(own, commit=commit), str(place), options.other_commit), None
    spec, base, parent = read_spec(place)
    folder = options.folder or parent / spec.name
    old = Sweep.open(folder) if (folder / MANIFEST).exists() else None
    runs = {run.name: run for run in spec.runs}
    if spec.asked is not None and old is not None:
        runs = {name: run for name, run in old.runs.items() if spec.may_ask(run)}
    if not runs and spec.asked is None:
        raise ConfigError(f"{place}: has no run; give an axis, e.g. seeds: [0, 1]")
    new = Sweep(folder, base, spec.metric, commit, runs, {} if old is None else old.facts, plugins)
    return merged(old, new, str(place), options.other_commit), spec


def read_spec(path: Path) -> tuple[Spec, str, Path]:
    """Reads a SPEC; returns it with its base as `flava-ds train` takes it, and where the base's runs are.

    Raises: ConfigError naming the file.
    """
    from flava_ds.recipes import load_recipe, partial
    from flava_ds.recipes.outside import is_outside
    from flava_ds.scaling import spec as specs

    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give a SPEC (docs/scaling.md) or a sweep's folder")
    found = specs.parse(partial.parse_file(path), str(path), path.stem)
    base, beside = found.base, path.parent / found.base
    if is_outside(base):
        raise ConfigError(
            f"{path}: base '{base}' is code, which a file cannot name; save it with `flava-ds config "
            f"{shlex.quote(base)}` as a .json and name that"
        )
    if beside.suffix in (".json", *partial.YAML):
        base = str(beside.absolute())
    try:
        return found, base, Path(load_recipe(base, checked=False).logging.run_directory)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_of(sweep: Sweep, run: Run) -> Config:
    """Returns the configuration of a run.

    Raises: ConfigError naming the run and the field that does not exist, the values that do not fit, or the
    metric that its results will lack.
    """
    from flava_ds.recipes import resolve
    from flava_ds.scaling.results import check_metric

    with names_run(sweep, run):
        config = resolve(sweep.base, words_of(sweep, run))
        check_metric(sweep.metric, config)
        return config


@contextmanager
def names_run(sweep: Sweep, run: Run) -> Iterator[None]:
    """Says of a UserError inside of which run it is."""
    try:
        yield
    except UserError as error:
        kind = ConfigError if isinstance(error, ConfigError) else UserError
        which = f"run of {run.place()}" if run.point else "every run"
        raise kind(f"{sweep.folder.name}, {which}: {error}") from error


def check_earlier(sweep: Sweep, configs: dict[str, Config], options: argparse.Namespace) -> None:
    """Compares the settings of runs that are finished, or would go on, with what the base says now; a failed
    run may be mended.

    Raises: ConfigError naming a run and its settings, unless --other-commit mixes them, which a line says.
    """
    from flava_ds.checkpoints.fits import changed_settings
    from flava_ds.checkpoints.place import Place
    from flava_ds.scaling.sweep import FAILED

    for name, config in configs.items():
        folder = sweep.path_of(name)
        if sweep.state(name)["state"] == FAILED or not (folder / "config.json").is_file():
            continue
        lines = changed_settings(Place(folder), config)
        if changed := [line for line in lines if not line.startswith(UNCOMPARED)]:
            said = f"{folder}: was trained with other settings, {', '.join(changed[:MOST_CHANGED])}"
            if not options.other_commit:
                raise ConfigError(
                    f"{said}; runs that differ in more than their axes do not compare, so undo the change in "
                    f"{sweep.base}, give the sweep another name or --folder, or mix them with --other-commit"
                )
            print(said, file=sys.stderr)


def check_begin(sweep: Sweep, options: argparse.Namespace) -> None:
    """As `check_earlier`, before a run begins: one finished run tells if the base has changed meanwhile."""
    from flava_ds.recipes.outside import import_plugins
    from flava_ds.scaling.sweep import FINISHED

    finished = next((own for name, own in sweep.runs.items() if sweep.state(name)["state"] == FINISHED), None)
    if finished is not None:
        import_plugins(sweep.plugins)
        check_earlier(sweep, {finished.name: config_of(sweep, finished)}, options)


def words_of(sweep: Sweep, run: Run) -> list[str]:
    """Returns the options of a run: its overrides and its place."""
    return [*run.words(), "--logging.run-directory", str(sweep.folder.absolute()), "--name", run.name]


def commit_now() -> str:
    """Returns the source's commit, or its version outside of a repository."""
    from flava_ds.watching.environment import git_state
    from flava_ds.watching.packages import version

    found = git_state()
    return f"version {version()}" if found is None else str(found["commit"])


def with_facts(sweep: Sweep, configs: dict[str, Config]) -> Sweep:
    """Returns the sweep with what the planner knows of its runs; what it knew of those that are not finished
    may be of a base that has been mended since.
    """
    from flava_ds.scaling.sweep import FINISHED
    from flava_ds.scaling.sweep_cost import facts_of, works_of

    new = {
        name: config
        for name, config in configs.items()
        if not sweep.facts.get(name) or sweep.state(name)["state"] != FINISHED
    }
    works = works_of(new)
    facts = {name: facts_of(config, works[name]) for name, config in new.items()}
    return dataclasses.replace(sweep, facts={**sweep.facts, **facts})


def waiting(sweep: Sweep, options: argparse.Namespace) -> list[str]:
    """Returns the runs that are not finished, in order, as far as --part and --most ask for them."""
    from flava_ds.scaling.sweep import FINISHED

    parts = {part for run in sweep.runs.values() for part in run.parts}
    if options.part is not None and options.part not in parts:
        hint = did_you_mean(options.part, parts) or f"; there is {', '.join(sorted(parts)) or 'none'}"
        raise UserError(f"--part {options.part}: the sweep has no such part{hint}")
    names = [
        name
        for name, run in sweep.runs.items()
        if sweep.state(name)["state"] != FINISHED and (options.part is None or options.part in run.parts)
    ]
    return names[: options.most]


def with_asked(
    sweep: Sweep, spec: Spec | None, configs: dict[str, Config], names: list[str], options: argparse.Namespace
) -> tuple[Sweep, dict[str, Config], list[str]]:
    """Returns sweep, configurations and waiting runs together with those that Optuna is still to choose, each
    like the base, as nobody knows more before: for the estimate.

    Raises: ConfigError when the base lacks what a run needs.
    """
    if spec is None or spec.asked is None:
        return sweep, configs, names
    from flava_ds.scaling.spec import Run

    room = spec.asked.runs - len(sweep.runs)
    coming = range(min(room, options.most - len(names)) if options.most else room)
    if not coming:
        return sweep, configs, names
    like = Run(spec.fixed, {})
    config = config_of(sweep, like)
    more = {f"asked {number}": config for number in coming}
    grown = dataclasses.replace(sweep, runs={**sweep.runs, **dict.fromkeys(more, like)})
    return with_facts(grown, more), configs | more, [*names, *more]
