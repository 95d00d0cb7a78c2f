"""UCF101: 101 actions by the middle frame of each film. The paper has its probe (Table C.1)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    Variant,
    all_needing,
    lines_of,
    number_of,
    of_files,
)
from flava_ds.evaluation.labelled import Fold
from flava_ds.evaluation.probe import ImageProbe

LISTS, FRAMES = "ucfTrainTestlist", "frames"


def read(numbers: tuple[int, ...], folder: Path, split: str) -> Listing:
    """Reads one of the three published splits, or all of them as folds of one set."""
    classes = [line.split()[-1] for line in lines_of(folder / LISTS / "classInd.txt")]
    parts = [(part, number) for number in numbers for part in ("train", "test")]
    films = {part: _films(folder / LISTS / f"{part[0]}list{part[1]:02d}.txt") for part in parts}
    keys = list(dict.fromkeys(film for part in parts for film in films[part]))
    keys = keys if len(numbers) > 1 else films[split, numbers[0]]
    class_number = number_of(classes, folder / LISTS)
    named = [(key, class_number(key.split("/")[0])) for key in keys]
    found = of_files(folder / FRAMES, named, classes, folder / LISTS)
    if len(numbers) == 1:
        return found
    place = {key: row for row, key in enumerate(keys)}
    rows = {part: np.array([place[film] for film in films[part]], dtype=np.int64) for part in parts}
    folds = tuple(Fold(rows["train", number], rows["test", number]) for number in numbers)
    return replace(found, folds=folds)


def _films(file: Path) -> list[str]:
    """Returns a list's films as their frames are called: CLASS/FILM.jpg."""
    return [f"{line.split()[0].removesuffix('.avi')}.jpg" for line in lines_of(file)]


DATA = PublishedImages(
    name="ucf101",
    folder="ucf101",
    licence="none is stated; the films are YouTube's, research use is customary",
    origin="by hand: UCF101.rar (7 GB) and UCF101TrainTestSplits-RecognitionTask.zip from the University of "
    "Central Florida; write frame n // 2 + 1, counted from 0, of each film's n as frames/CLASS/FILM.jpg, "
    "with ffmpeg say",
    layout="ucfTrainTestlist/{classInd,trainlist01,testlist01,...}.txt and frames/CLASS/v_*.jpg",
    variants=(
        Variant("vissl", all_needing(("test", "train"), LISTS, FRAMES), partial(read, (1,))),
        Variant("clip", all_needing(("test",), LISTS, FRAMES), partial(read, (1, 2, 3))),
    ),
)
TASKS = (ImageProbe("ucf101_probe", DATA),)
