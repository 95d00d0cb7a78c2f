"""Methods by their plain name, `--task zero_shot`: on your own data, whichever way it is laid out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flava_ds.config.evaluation import LAYOUTS, METHODS
from flava_ds.errors import DataError
from flava_ds.evaluation.protocols import Evaluator


def task_on(method: str, root: Path, tasks: Mapping[str, Evaluator]) -> Evaluator:
    """Returns the task of a method on the user's data in `root`, or in the folder of that layout in it.

    Raises: DataError when there is none, or none that the method reads.
    """
    fitting = [tasks[name] for layout in LAYOUTS if (name := f"{layout}_{METHODS[method]}") in tasks]
    for task in fitting:
        folders = (root / task.data.folder, root)
        if any(folder.is_dir() and task.data.is_here(folder) for folder in folders):
            return task
    expected = "; or ".join(task.data.layout for task in fitting)
    raise DataError(f"--task {method}: no data of yours in {root}; it needs {expected}")
