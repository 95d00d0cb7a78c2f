"""What the tasks of several families have in common: how they are built, and what of a batch they count."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.training.task import Task, recompute_activations

Built = TypeVar("Built", bound=Task)


def seeded(make: Callable[[Config], Built], config: Config, initialize: Callable[[Built], None]) -> Built:
    """Makes a task, and draws its initial weights from config.seed, independent of the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task = make(config)
        initialize(task)
    recompute_activations(task, config.training)
    return task


def terms(task: Task, batch: Batch, *kinds: type) -> int:
    """Returns the terms of a batch for the active objectives of some classes."""
    return sum(own.count(batch) for own in task.active(batch.kind).values() if isinstance(own, kinds))


def rows_read(task: Task, batch: Batch) -> dict[str, int]:
    """Returns how many rows of each view the active objectives read of a batch."""
    found: dict[str, int] = {}
    for objective in task.active(batch.kind).values():
        for view, rows in objective.reads(task.model, batch).items():
            found[view] = found.get(view, 0) + rows.shape[0]
    return found
