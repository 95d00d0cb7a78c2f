"""Evaluation during training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flava_ds.config.bounds import AtLeast, AtMost, Steps
from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Tasks that run every so many steps. `flava-ds evaluate --list` shows them; docs/evaluation.md says what
    they cost.
    """

    every_steps: Steps = 0
    """Steps between evaluations, which also run after the last step; 0 never evaluates."""
    tasks: tuple[str, ...] = ()
    """Names, or FILE.py with TASKS of your own."""
    data_root: str | None = None
    """Folder that the tasks' data sets lie in; every host needs it."""
    limit: Annotated[int, AtLeast(1), AtMost(10**9)] = 1000
    """At most so many samples of each split, at even distances: the ranks share them, and training stands
    meanwhile.
    """


def check_evaluation(config: EvaluationConfig, best_metric: str) -> None:
    """Raises ConfigError when tasks lack something, or the metric that checkpoints are kept by is none of
    theirs.
    """
    if config.every_steps and not config.tasks:
        raise ConfigError(
            "evaluation.every_steps is set, but evaluation.tasks is empty; name a task, or set "
            "evaluation.every_steps to 0"
        )
    if config.tasks and config.data_root is None:
        raise ConfigError(
            "evaluation.tasks needs evaluation.data_root, the folder that their data sets lie in"
        )
    task = best_metric.removeprefix("evaluation/").split("/")[0]
    own_files = any(".py" in name for name in config.tasks)
    if best_metric.startswith("evaluation/") and not (
        config.every_steps and (task in config.tasks or own_files)
    ):
        raise ConfigError(
            f"checkpoint.best_metric is '{best_metric}', but task '{task}' does not run: put it into "
            "evaluation.tasks and set evaluation.every_steps"
        )
