"""Weights that one run passes on to another: a part of a checkpoint's, or of a running average in it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from torch import Tensor

from flava_ds.checkpoints.contents import read_state, verify
from flava_ds.checkpoints.files import best, latest, place_of
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import CheckpointReader
from flava_ds.config import Config
from flava_ds.config.evaluation import EVALUATED
from flava_ds.errors import CheckpointError


def finished(config: Config) -> Place | None:
    """Returns a run's checkpoint after its last step, or None when it has not come so far.

    Raises: CheckpointError when its checkpoints cannot be read.
    """
    folder = latest(place_of(config.run_path, config))
    done = folder is not None and read_state(folder)["step"] >= config.training.total_steps
    return folder if done else None


def to_pass_on(config: Config) -> Place:
    """Returns the checkpoint whose weights a finished run passes on: the best one by an evaluation if
    checkpoint.best_metric names one, else the last.

    Raises: CheckpointError when no checkpoint has the evaluation's number.
    """
    place, rules = place_of(config.run_path, config), config.checkpoint
    if not rules.best_metric.startswith(EVALUATED):
        folder = latest(place)
        assert folder is not None  # it has finished
        return folder
    if (folder := best(place, rules)) is None:
        raise CheckpointError(
            f"{place}: no checkpoint has '{rules.best_metric}' (checkpoint.best_metric), so none is the best "
            "to pass on; evaluate at the steps that are saved, or unset it to pass on the last one"
        )
    return folder


def begun(config: Config) -> bool:
    """Tells whether a run has a checkpoint that it would go on from."""
    return latest(place_of(config.run_path, config)) is not None


def passed_on(folder: Place, prefixes: Sequence[str], average: str | None = None) -> dict[str, Tensor]:
    """Reads, after a comparison with the manifest, the parameters whose names begin with one of `prefixes`;
    of the running average of the training state `average` where it follows them.

    Raises: CheckpointError when the checkpoint is damaged or has none of them.
    """
    verify(folder)
    key = f"average.{average}"
    with closing(CheckpointReader(folder)) as reader:
        names = [name for name in reader.shapes if name.startswith(tuple(prefixes))]
        averaged = [name for name in names if average is not None and reader.holds(key, name)]
        if not names or (average is not None and not averaged):
            what = f"parameter '{prefixes[0]}...'" if not names else f"average '{average}' of them"
            raise CheckpointError(f"{folder} has no {what} to pass on; its run was of another configuration")
        return {name: reader.whole(key if name in averaged else "weight", name) for name in names}
