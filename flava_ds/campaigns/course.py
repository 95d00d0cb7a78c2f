"""A run along its way: its losses over the FLOPs it has used, and where it is measured before its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flava_ds.checkpoints.files import FOLDER, name_of
from flava_ds.config import Config
from flava_ds.scaling.results import WITH_TARGETS, course
from flava_ds.watching.run_log import read_log

QUARTERS = 4
MEANS = 24
"""Means of a loss along a run, each over an equal share of its FLOPs."""


def quarter(config: Config) -> int:
    """Returns the steps of a quarter of a run."""
    return config.training.total_steps // QUARTERS


def checkpoints_on_the_way(config: Config) -> list[Path]:
    """Lists the checkpoints after each quarter of a run but the last, all of which it keeps."""
    steps = [number * quarter(config) for number in range(1, QUARTERS)]
    return [config.run_path / FOLDER / name_of(step) for step in steps]


def losses_of(run_path: Path) -> dict[str, list[float | None]]:
    """Returns the means of each loss over equal shares of the run's FLOPs, those of frozen networks included;
    None for a share in which it was not logged.
    """
    log = read_log(run_path / "log.jsonl")
    used = course(log)
    found = {}
    for name in log.names("loss/"):
        at, values = used.along(log, f"loss/{name}", WITH_TARGETS)
        share = np.minimum(MEANS - 1, MEANS * np.array(at) // used.used[WITH_TARGETS][-1])
        means = [np.array(values)[share == number] for number in range(MEANS)]
        found[name] = [round(float(own.mean()), 4) if len(own) else None for own in means]
    return found
