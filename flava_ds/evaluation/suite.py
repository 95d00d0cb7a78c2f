"""Suites: every task of a kind whose data lies under one folder, one after the other, into one file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import DataError, UserError
from flava_ds.evaluation import registry
from flava_ds.evaluation.datasets.published_images import PublishedImages
from flava_ds.evaluation.frozen_model import FrozenModel, Lacking
from flava_ds.evaluation.labelled import state_of_pictures
from flava_ds.evaluation.protocols import EvaluationData, Evaluator, Progress, Trained
from flava_ds.evaluation.runner import FoundData, evaluate, expected, find_data
from flava_ds.evaluation.shares import Share
from flava_ds.evaluation.statistics import RESAMPLES, SEED
from flava_ds.storage.atomic import write_json

FILE = "suite.json"
DISTRIBUTIONS = ("flava_ds", "torch", "torchvision", "numpy", "scikit-learn")
IDENTITY = ("weights", "precision", "device", "data", "limit", "splits")
"""Facts that an earlier result must share for it to be kept."""


def members(suite: str) -> list[Evaluator]:
    """Returns a suite's tasks, by name. A method that names no suite is in 'all' only."""
    known = sorted(registry.tasks().items())
    return [task for _, task in known if suite in ("all", getattr(task, "suite", None))]


def with_splits(tasks: Sequence[Any], splits: str | None) -> list[Any]:
    """Returns the tasks with data sets that offer these splits split that way.

    Raises: UserError when none of them does.
    """
    if splits is None:
        return list(tasks)
    offered = sorted({way for task in tasks for way in ways(task.data)})
    if splits not in offered:
        raise UserError(
            f"--splits {splits}: no data set of these tasks is split so; there are "
            f"{', '.join(offered) or 'none'}"
        )
    return [
        dataclasses.replace(task, data=task.data.with_variant(splits)) if splits in ways(task.data) else task
        for task in tasks
    ]


def split_otherwise(tasks: Sequence[Evaluator], splits: str | None) -> list[str]:
    """Returns the data sets that have published ways to split them, and not this one."""
    varied = {task.data.name: task.data for task in tasks if isinstance(task.data, PublishedImages)}
    return sorted(name for name, data in varied.items() if splits not in (None, data.variant))


def ways(data: EvaluationData) -> list[str]:
    """Returns the published ways to split a data set."""
    return [variant.name for variant in data.variants] if isinstance(data, PublishedImages) else []


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def conditions() -> dict[str, Any]:
    """Returns what every result depends on besides model and data: versions, and how intervals are drawn."""
    return {"versions": versions(), "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "level": 0.95}}


@dataclass(frozen=True)
class Suite:
    """One run of a suite on one model; its file is written after every task.

    `facts` say which model this is, by the names of IDENTITY and more.
    """

    name: str
    tasks: Sequence[Evaluator]
    root: Path
    out: Path
    limit: int | None
    facts: dict[str, Any]
    tell: Progress = lambda _: None
    share: Share = field(default_factory=Share)
    """Which part of the work is this process's."""

    def run(self, freeze: Callable[[], FrozenModel]) -> dict[str, Any]:
        """Runs what there is data for, keeps what an earlier run found for the same weights, pictures and
        settings, and returns what the file holds. `freeze` gives the model, anew for each data set, whose
        features it holds. A task that fails on one of several ranks fails on all, and the next one begins.

        Raises: DataError when the file of an earlier run is damaged.
        """
        earlier = self.share.from_main(self._earlier)
        report = {"suite": self.name, **self.facts, **conditions(), "tasks": {}}
        done: dict[str, Any] = {}
        for data, tasks in itertools.groupby(self.tasks, key=lambda task: task.data):
            for task, found in self._run_tasks(data, list(tasks), freeze, earlier):
                done[task.name] = {"data": data.name, "protocol": task.about, **found}
                # What is still to come keeps its earlier result in the file, for the next attempt.
                whole = report | {"tasks": done | {k: v for k, v in earlier.items() if k not in done}}
                self._write(whole)
        report["tasks"] = done
        self._write(report)
        return report

    def _write(self, report: dict[str, Any]) -> None:
        self.share.from_main(lambda: write_json(self.out / FILE, report))

    def _run_tasks(
        self,
        data: EvaluationData,
        tasks: list[Evaluator],
        freeze: Callable[[], FrozenModel],
        earlier: dict[str, Any],
    ) -> Iterator[tuple[Evaluator, dict[str, Any]]]:
        """Yields the result of each task on one data set, or why there is none."""
        folder = self.root / data.folder
        if not self.share.from_main(folder.is_dir):
            yield from ((task, {"skipped": f"{folder}: no such folder; {expected(data)}"}) for task in tasks)
            return
        try:
            found = self.share.together(lambda: find_data(data, self.root, limit=self.limit))
        except UserError as error:
            self.tell(f"{data.name}: {error}")
            yield from ((task, {"failed": str(error)}) for task in tasks)
            return
        model = freeze()
        for task in tasks:
            yield task, self._run_task(task, model, found, earlier)

    def _run_task(
        self, task: Evaluator, model: FrozenModel, found: FoundData, earlier: dict[str, Any]
    ) -> dict[str, Any]:
        try:
            kept = self.share.from_main(lambda: self._kept(task, found, earlier))
            if model.workplace.keep_weights and isinstance(task, Trained):
                kept = None  # the task itself knows whether its weights were kept
            if kept is not None:
                self.tell(f"{task.name}: kept from an earlier run")
                return kept
            results = self.share.together(lambda: evaluate([task], model, {task.name: found}, self.tell))
        except Lacking as error:
            return {"skipped": str(error)}
        except UserError as error:
            self.tell(f"{task.name}: {error}")
            return {"failed": str(error)}
        return results[task.name].to_json(task.name, str(self.facts.get("family", "")))

    def _kept(self, task: Evaluator, found: FoundData, earlier: dict[str, Any]) -> dict[str, Any] | None:
        """Returns what an earlier run found on the very same samples."""
        known = earlier.get(task.name)
        if not isinstance(known, dict) or "scores" not in known:
            return None
        prints = known.get("fingerprints")
        if not isinstance(prints, dict) or known.get("splits") != getattr(task.data, "variant", None):
            return None
        read = {split: found.read(split) for split in prints if split in task.data.splits}
        now = {split: own.fingerprint for split, own in read.items()}
        files = {split: state_of_pictures(own) for split, own in read.items()}
        return known if now and now == prints and files == known.get("files") else None

    def _earlier(self) -> dict[str, Any]:
        """Returns an earlier run's results if they are of this model and these settings."""
        file = self.out / FILE
        if not file.is_file():
            return {}
        try:
            known = loads(read_small(file))
            differ = [name for name in IDENTITY if known.get(name) != self.facts.get(name)]
            tasks = dict(known["tasks"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}: not the file of a suite ({error}); delete it, or give another --out"
            ) from error
        if differ:
            name = differ[0]
            self.tell(f"{file}: of other {name} ({known.get(name)}, here {self.facts.get(name)}); run anew")
            return {}
        return tasks
