"""VQA v2 as published: questions and annotations of COCO's 2014 pictures."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.json_lines import find_images
from flava_ds.evaluation.labelled import LabelledPairs
from flava_ds.evaluation.stored import Files
from flava_ds.evaluation.vqa_answers import frequent_answers, label_of

QUESTIONS = "v2_OpenEnded_mscoco_{}2014_questions.json"
ANNOTATIONS = "v2_mscoco_{}2014_annotations.json"


@dataclass(frozen=True, eq=False)
class Questions(LabelledPairs):
    """Questions on images with ten people's answers to each.

    `class_names` are the frequent answers; `labels` [N] is the place of each question's commonest answer
    among them, or -1.
    """

    answers: tuple[tuple[str, ...], ...] = ()

    def select(self, rows: np.ndarray) -> Self:
        chosen = super().select(rows)
        return dataclasses.replace(chosen, answers=tuple(self.answers[row] for row in rows))

    @functools.cached_property
    def places(self) -> Mapping[str, int]:
        """Maps each frequent answer to its place."""
        return {answer: place for place, answer in enumerate(self.class_names)}


@dataclass(frozen=True)
class VqaV2:
    """Train and val. The paper reports test-dev, which only a server scores."""

    name: str = "vqav2"
    folder: str = "vqav2"
    licence: str = "annotations CC BY 4.0; the pictures are Flickr users', for research"
    origin: str = (
        "by hand: questions and annotations of v2 from the VQA page (about 60 MB zipped), train2014.zip and "
        "val2014.zip (13 and 6 GB) from COCO's"
    )
    splits: tuple[str, ...] = ("val", "train")

    @property
    def layout(self) -> str:
        """Describes the files."""
        files = ", ".join(name.format("{train,val}") for name in (QUESTIONS, ANNOTATIONS))
        return f"{files}, and the pictures in train2014/ and val2014/, here or in ../coco/"

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for a split's questions."""
        return (folder / QUESTIONS.format(split or self.splits[0])).is_file()

    def read(self, folder: Path, split: str) -> Questions:
        """Reads a split; the frequent answers are counted over both splits.

        Raises: DataError naming a file with another layout, a question without answers, or a missing picture.
        """
        file = folder / QUESTIONS.format(split)
        asked = _entries(file, "questions", ("question_id", "image_id", "question"), self.layout)
        annotations = folder / ANNOTATIONS.format(split)
        given = {entry[0]: entry[1:] for entry in _annotations(annotations, self.layout)}
        lacking = [entry[0] for entry in asked if entry[0] not in given]
        if lacking:
            raise DataError(f"{annotations}: has no answers to question {lacking[0]} of {file.name}")
        names = [f"COCO_{split}2014_{int(image):012d}.jpg" for _, image, _ in asked]
        places = [folder / f"{split}2014", folder.parent / "coco" / f"{split}2014"]
        files = find_images(places, names, self.origin)
        answers = _frequent(folder, self.layout)
        number = {answer: place for place, answer in enumerate(answers)}
        labels = [number.get(label_of(given[key][0]), -1) for key, _, _ in asked]
        return Questions(
            name=self.name,
            keys=tuple(f"{key}" for key, _, _ in asked),
            load=Files(files),
            texts=tuple(question for _, _, question in asked),
            labels=np.array(labels, dtype=np.int64),
            class_names=answers,
            pictures=tuple(Path(name).stem for name in names),
            answers=tuple(given[key][1] for key, _, _ in asked),
        )


def _frequent(folder: Path, layout: str) -> tuple[str, ...]:
    """Returns the frequent answers of the annotations of train and val. Raises: DataError."""
    stamps = []
    for split in ("train", "val"):
        file = folder / ANNOTATIONS.format(split)
        if not file.is_file():
            raise DataError(
                f"{file}: is missing, and the answers are counted over train and val; expected {layout}"
            )
        stamps.append((file, file.stat().st_mtime_ns))
    return _counted(tuple(stamps), layout)


@functools.lru_cache(maxsize=4)
def _counted(stamps: tuple[tuple[Path, int], ...], layout: str) -> tuple[str, ...]:
    """Reads the files once, unless they change. Raises: DataError."""
    found = frequent_answers(entry[1] for file, _ in stamps for entry in _annotations(file, layout))
    if not found:
        raise DataError(f"{stamps[0][0]}: no answer is frequent enough to be learnt; get the files again")
    return found


def _annotations(file: Path, layout: str) -> list[tuple[int, str, tuple[str, ...]]]:
    """Returns each question's id, its commonest answer, and all of its answers."""
    entries = _entries(file, "annotations", ("question_id", "multiple_choice_answer", "answers"), layout)
    try:
        return [(key, best, tuple(str(said["answer"]) for said in answers)) for key, best, answers in entries]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: an answer has no 'answer' ({error}); expected {layout}") from error


def _entries(file: Path, name: str, fields: tuple[str, ...], layout: str) -> list[tuple[Any, ...]]:
    """Reads a list of objects out of one object. Raises: DataError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[name]
        return [tuple(entry[field] for field in fields) for entry in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: not an object with {name}[] of {', '.join(fields)} ({type(error).__name__}: {error}); "
            f"expected {layout}"
        ) from error
