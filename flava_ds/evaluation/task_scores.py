"""Runs one task and checks what it returns: a mistake in a task of one's own is one line that names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from flava_ds.errors import DataError, UserError, own_place, told_at
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.protocols import Evaluator, Score, Unit
from flava_ds.ranks.distributed import of_exchange


def scores_of(task: Evaluator, model: FrozenModel, data: Any) -> dict[str, Score]:
    """Returns what a task has measured, in plain numbers.

    Raises: DataError naming the task if it returns something else, and also the line if code of the user's
    fails. What fails in ours, or because another rank is gone, is raised as it is.
    """
    try:
        found = task.run(model, data)
    except (UserError, OSError):
        raise
    except Exception as error:
        if own_place(error) is None or of_exchange(error):
            raise
        raise DataError(f"task {task.name} failed: {told_at(error)}") from error
    if not isinstance(found, Mapping) or not found:
        what = f"{found!r:.60}" if isinstance(found, Mapping) else type(found).__name__
        raise DataError(f"task {task.name} returned {what}; a task returns {{name: Score}}")
    return {name: _plain(task.name, name, score) for name, score in found.items()}


def _plain(task: str, name: str, score: Score) -> Score:
    """Returns a score with numbers that JSON knows, as NumPy and torch have others."""
    what = f"task {task}, number {name!r:.60}"
    if not isinstance(score, Score):
        raise DataError(f"{what} is {type(score).__name__}; return a flava_ds.evaluation.protocols.Score")
    if score.unit not in get_args(Unit):
        raise DataError(f"{what} has the unit {score.unit!r:.60}; there are {', '.join(get_args(Unit))}")
    try:
        low, high = (None, None) if score.interval is None else score.interval
        return dataclasses.replace(
            score,
            value=float(score.value),
            n=int(score.n),
            standard_error=None if score.standard_error is None else float(score.standard_error),
            higher_is_better=bool(score.higher_is_better),
            interval=None if low is None or high is None else (float(low), float(high)),
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} is no score of single numbers: {error}") from error
