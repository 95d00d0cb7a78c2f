"""The configuration of evaluation during training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flava_ds.config.bounds import AtLeast, AtMost, Steps
from flava_ds.errors import ConfigError


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
    """Maximum samples per split, evenly spaced; the ranks share them, and training pauses meanwhile."""


def check_evaluation(config: EvaluationConfig, best_metric: str) -> None:
    """Raises ConfigError when tasks lack a setting, or no task produces `best_metric`."""
    if config.every_steps and not config.tasks:
        raise ConfigError(
            "evaluation.every_steps is set, but evaluation.tasks is empty; name a task, or set "
            "evaluation.every_steps to 0"
        )
    if config.tasks and config.data_root is None:
        raise ConfigError("evaluation.tasks needs evaluation.data_root, the folder with their data sets")
    task = best_metric.removeprefix("evaluation/").split("/")[0]
    own_files = any(".py" in name for name in config.tasks)
    runs = bool(config.every_steps) and (task in config.tasks or own_files)
    if best_metric.startswith("evaluation/") and not runs:
        raise ConfigError(
            f"checkpoint.best_metric is '{best_metric}', but task '{task}' does not run: add it to "
            "evaluation.tasks and set evaluation.every_steps"
        )
