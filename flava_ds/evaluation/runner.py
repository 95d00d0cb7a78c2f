"""Runs tasks on a model: finds their data, checks their needs, measures their time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flava_ds.errors import DataError
from flava_ds.evaluation import registry
from flava_ds.evaluation.datasets.published_images import PublishedImages
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import limited, state_of_pictures
from flava_ds.evaluation.protocols import EvaluationData, Evaluator, Progress, Score, Trained
from flava_ds.evaluation.published import TEST_SAMPLES, as_many_as_published, published
from flava_ds.evaluation.results import READ_AGAIN
from flava_ds.evaluation.task_scores import scores_of


@dataclass(frozen=True)
class FoundData:
    """A data set in its folder; each split is read once for all tasks and limited to `limit` samples."""

    data: EvaluationData
    folder: Path
    split: str
    limit: int | None = None
    _read: dict[str, Any] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)

    def anew(self) -> FoundData:
        """Returns the same data, with what is read so far, for another task."""
        return dataclasses.replace(self, _asked=set())

    def test(self) -> Any:
        """Returns the samples to report on."""
        return self.read(self.split)

    def read(self, split: str) -> Any:
        """Returns the samples of a split.

        Raises: DataError if the split is missing or empty.
        """
        self._asked.add(split)
        if split not in self._read:
            samples = self.data.read(self.folder, split)
            if not len(samples):
                raise DataError(
                    f"{self.folder}: split '{split}' of {self.data.name} has no samples; "
                    f"{expected(self.data)}"
                )
            self._read[split] = limited(samples, self.limit)
        return self._read[split]

    def asked_for(self) -> dict[str, Any]:
        """Returns the splits that the task has asked for."""
        return {split: self._read[split] for split in sorted(self._asked & self._read.keys())}

    def has(self, split: str) -> bool:
        """Returns True if the folder contains that split."""
        return self.data.is_here(self.folder, split)


@dataclass(frozen=True)
class TaskResult:
    """What one task measured, and on which samples."""

    scores: dict[str, Score]
    seconds: float
    facts: dict[str, Any]

    def to_json(self, task: str, family: str = "") -> dict[str, Any]:
        """Returns plain JSON types, with the published results for the same samples, also of a `family`."""
        known = {} if self.facts.get("departures") else {n: published(task, n, family) for n in self.scores}
        numbers = {
            name: dataclasses.asdict(score)
            | {"published": [dataclasses.asdict(p) for p in known.get(name, ())]}
            for name, score in self.scores.items()
        }
        return {"scores": numbers, "seconds": round(self.seconds, 2), **self.facts}


def expected(data: EvaluationData) -> str:
    """Describes what a data set's folder must contain, where to get it and under which licence."""
    return f"expected {data.layout}; {data.origin}; licence: {data.licence}"


def find_data(
    data: EvaluationData, root: Path, split: str | None = None, limit: int | None = None
) -> FoundData:
    """Finds a data set in ROOT/<its folder>, or in ROOT itself, unless that is another set of its name.

    Raises: DataError saying what was expected and how to get it, or listing the existing splits.
    """
    if split is not None and split not in data.splits:
        raise DataError(f"{data.name} has no split '{split}'; there are {', '.join(data.splits)}")
    for folder in (root / data.folder, root):
        if folder == root and _is_another(data, root):
            continue
        if not folder.is_dir() or not data.is_here(folder):
            continue
        wanted = [split] if split else [name for name in data.splits if name != "train"]
        there = [name for name in wanted if data.is_here(folder, name)]
        if not there:
            raise DataError(
                f"{folder}: split {' or '.join(wanted)} of {data.name} is not there; {expected(data)}"
            )
        return FoundData(data, folder, there[0], limit)
    raise DataError(f"no {data.name} in {root / data.folder} or {root}: {expected(data)}")


def _is_another(data: EvaluationData, root: Path) -> bool:
    """Returns whether a folder is that of another set, by its name and its content."""
    known = {task.data for task in registry.tasks().values()}
    named = [own for own in known if own.folder == root.absolute().name]
    return data not in named and any(own.is_here(root) for own in named)


def find_all(
    tasks: Sequence[Evaluator], root: Path, split: str | None = None, limit: int | None = None
) -> dict[str, FoundData]:
    """Finds the data of all tasks: task -> data; tasks with the same data set share what is read.

    Raises: DataError.
    """
    found: dict[EvaluationData, FoundData] = {}
    for task in tasks:
        if task.data not in found:
            found[task.data] = find_data(task.data, root, split, limit)
    there = sorted({own.data.folder for own in found.values() if own.folder == root})
    if len(there) > 1:
        raise DataError(
            f"{root}: would be read as {' and as '.join(there)}; put each set into a folder of its name, and "
            "give the folder above them"
        )
    return {task.name: found[task.data] for task in tasks}


def departures(task: Evaluator, found: FoundData, samples: int) -> list[str]:
    """Returns how the samples differ from those that a published number is of: split another way,
    another split than the first (or than the data set's `published_on`), not all samples or, for none of
    these reasons, another number of them.
    """
    data, told = task.data, []
    if isinstance(data, PublishedImages) and data.variant != data.usual:
        told.append(f"splits {data.variant}")
    if found.split not in getattr(data, "published_on", data.splits[:1]):
        told.append(f"split {found.split}")
    if found.limit is not None:
        told.append(f"at most {found.limit:,} samples a split")
    if not told and not as_many_as_published(data.name, samples):
        told.append(
            f"{samples:,} samples instead of {' or '.join(f'{n:,}' for n in TEST_SAMPLES[data.name])}"
        )
    return told


def check_needs(tasks: Sequence[Evaluator], model: FrozenModel) -> None:
    """Raises Lacking if the model lacks a capability that one of the tasks needs."""
    for task in tasks:
        for capability in task.needs:
            model.need(capability, f"task {task.name}")


def evaluate(
    tasks: Sequence[Evaluator],
    model: FrozenModel,
    data: dict[str, FoundData],
    tell: Progress = lambda _: None,
) -> dict[str, TaskResult]:
    """Runs tasks one after the other: task -> result. Calls `tell` when one starts.

    Raises: Lacking before anything is read; DataError.
    """
    check_needs(tasks, model)
    results = {}
    for task in tasks:
        start, found = time.monotonic(), data[task.name].anew()
        tell(f"{task.name}: {task.about}")
        scores = scores_of(task, model, found)
        splits = task.reported(found) if isinstance(task, Trained) else (found.split,)
        samples = sum(len(found.read(split)) for split in splits)
        facts = {
            "protocol": task.about,
            "data": task.data.name,
            "folder": str(found.folder.absolute()),
            "split": " and ".join(splits),
            "samples": samples,
            "departures": departures(task, found, samples),
            "limit": found.limit,
            "fingerprint": found.test().fingerprint,
            "fingerprints": {split: read.fingerprint for split, read in found.asked_for().items()},
            "files": {split: state_of_pictures(read) for split, read in found.asked_for().items()},
            **({"splits": task.data.variant} if isinstance(task.data, PublishedImages) else {}),
            **({"fine_tuning": task.settings(found)} if isinstance(task, Trained) else {}),
            **({READ_AGAIN: True} if task.name in model.workplace.read_again else {}),
        }
        results[task.name] = TaskResult(scores, time.monotonic() - start, facts)
    return results
