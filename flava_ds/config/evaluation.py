"""The configuration of evaluation during training."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated

from flava_ds.config.bounds import AtLeast, AtMost, Steps
from flava_ds.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Tasks that run during training: see `flava-ds evaluate --list`, and docs/evaluation.md for the cost."""

    every_steps: Steps = 0
    """Steps between evaluations, which also run after the last step; 0 never evaluates."""
    tasks: tuple[str, ...] = ()
    """Task names, or FILE.py that defines TASKS."""
    data_root: str | None = None
    """Folder with the tasks' data sets; every host needs it."""
    limit: Annotated[int, AtLeast(1), AtMost(10**9)] = 1000
    """Maximum samples per split, of each class its share; the ranks share them, training pauses meanwhile."""
    average: str | None = None
    """A training state whose running average is evaluated where it follows the weights: that of
    training.weight_average is "ema", DINO's teacher "dino.teacher". None evaluates the weights themselves."""
    references: bool = False
    """Also evaluate once before the first update, and, for tasks that read image features alone, raw pixels:
    what the numbers of a trained model are compared with."""


METHODS = {
    "zero_shot": "zero_shot",
    "retrieval": "retrieval",
    "linear_probe": "probe",
    "neighbours": "neighbours",
}
"""Methods by their plain names, and how the tasks of a data set are called after them."""
LAYOUTS = ("own", "image_folder")
"""Data sets that a user brings, each a way to lay the data out: `zero_shot` is `own_zero_shot` where the data
are shards.
"""
OWN_FILE = re.compile(r"(?P<file>.+\.py)(:(?P<task>.*))?")
"""A task's name that is a Python file with TASKS, or one of them."""
EVALUATED = "evaluation/"
"""How the names of the tasks' numbers begin in the log: evaluation/<task>/<number>."""
ACCURATE = "accuracy/"
"""How the names of the objectives' accuracies begin in the log."""
OF_OBJECTIVES = {"loss": 2, "accuracy": 2, "gradient_norm": 2, "metric": 3}
"""How numbers of objectives begin in the log, and of how many parts their names are; the last one is the
objective.
"""


def files_of(tasks: Iterable[str]) -> list[str]:
    """Returns the Python files among the names of tasks."""
    return [found["file"] for name in tasks if (found := OWN_FILE.fullmatch(name)) is not None]


def higher_is_better(name: str, lower: Collection[str] = ()) -> bool:
    """Returns whether more of a logged number is better: of accuracies, and of tasks' numbers except those in
    `lower`, of which their task says otherwise.
    """
    return name.startswith(ACCURATE) or (name.startswith(EVALUATED) and name not in lower)


def check_evaluation(config: EvaluationConfig, best_metric: str, objectives: Collection[str]) -> None:
    """Raises ConfigError when tasks lack a setting, or no task and no objective in use produces
    `best_metric`.
    """
    if config.every_steps and not config.tasks:
        raise ConfigError(
            "evaluation.every_steps is set, but evaluation.tasks is empty; name a task, or set "
            "evaluation.every_steps to 0"
        )
    if config.tasks and config.data_root is None:
        raise ConfigError("evaluation.tasks needs evaluation.data_root, the folder with their data sets")
    for name in config.tasks:
        if "." in name and OWN_FILE.fullmatch(name) is None:  # no task's name has a dot
            raise ConfigError(
                f"evaluation.tasks: '{name}' is no task; give a module of your own as its file, FILE.py, "
                "which defines TASKS"
            )
    if best_metric not in ("", "grad_norm"):
        check_logged("checkpoint.best_metric", best_metric, config, objectives)


def check_logged(setting: str, name: str, config: EvaluationConfig, objectives: Collection[str]) -> None:
    """Raises ConfigError, naming the setting, when no task and no objective in use produces the number that
    it names.
    """
    if not name.startswith(EVALUATED):
        _check_of_objective(setting, name, objectives)
        return
    task = name.removeprefix(EVALUATED).split("/")[0]
    if not (config.every_steps and (_may_run(task, config.tasks) or files_of(config.tasks))):
        raise ConfigError(
            f"{setting} is '{name}', but task '{task}' does not run: add it to evaluation.tasks and set "
            "evaluation.every_steps"
        )


def _may_run(task: str, names: Collection[str]) -> bool:
    """Returns whether the names of tasks have this one, or a plain method that it may be."""
    called = {f"{layout}_{METHODS[name]}" for name in names if name in METHODS for layout in LAYOUTS}
    return task in called.union(names)


def _check_of_objective(setting: str, name: str, objectives: Collection[str]) -> None:
    """Raises ConfigError for a number that the log never has."""
    head, *rest = name.split("/")
    if OF_OBJECTIVES.get(head) != 1 + len(rest) or rest[-1] not in objectives:
        known = [f"loss/{objective}" for objective in objectives]
        raise ConfigError(
            f"{setting} is {name!r:.100}, which the log does not have"
            f"{did_you_mean(name, known) or '; use one such as ' + ', '.join(known)}"
        )
