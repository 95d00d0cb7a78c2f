"""Shards of scenes with labels: boxes of drawings, questions with answers, statements that follow or not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from flava_ds.data.targets import TARGETS_SUFFIX
from flava_ds.demo.scene_texts import ANSWERS, FITS, ask, state
from flava_ds.demo.scenes import CANVAS, SPLITS, Drawings, Scene, draw_scene, paint, read_drawings
from flava_ds.demo.shards import Sample, write_shards
from flava_ds.errors import DataError
from flava_ds.evaluation.samples import read_samples

TASKS = ("detection", "question", "entailment")
"""Folders of labelled scenes, named as UniT's tasks."""
PER_SHARD = 1000


@functools.lru_cache(maxsize=4)
def subgroups(root: Path) -> tuple[str, ...]:
    """Names the classes of drawings: the subgroups of the training styles, sorted."""
    return tuple(sorted(set(map(str, read_samples(Path(root) / SPLITS["train"]).column("subgroup")))))


def objects_of(drawings: Drawings, scene: Scene, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes of a scene's drawings, as shares, and their classes: [o 4] fp32, [o] int64.

    A class that is not among `names` is -1.
    """
    labels = [drawings.subgroups[row] for row in scene.rows]
    numbers = [names.index(label) if label in names else -1 for label in labels]
    return np.array(scene.boxes, dtype=np.float32) / CANVAS, np.array(numbers, dtype=np.int64)


def write_scenes(root: Path, out: Path, *, split: str = "train", samples: int, seed: int = 1) -> list[Path]:
    """Writes folders `detection`, `question` and `entailment` of shards below `out`, each with other scenes.

    A sample has the picture, its text where there is one, and its labels; it is a function of (seed, number).

    Raises: DataError if a folder is there already, or the drawings in `root` are not complete.
    """
    drawings, names = read_drawings(Path(root), split), subgroups(Path(root))
    folders = [out / task for task in TASKS]
    for folder in folders:
        if folder.exists():
            raise DataError(f"'{folder}' is there already; delete it, or choose another OUT")
    for number, (task, folder) in enumerate(zip(TASKS, folders, strict=True)):
        first = number * samples  # so that tasks share no scene
        write_shards(folder, _samples(drawings, names, task, seed, range(first, first + samples)), PER_SHARD)
    return folders


def _samples(
    drawings: Drawings, names: Sequence[str], task: str, seed: int, numbers: range
) -> Iterator[Sample]:
    from torchvision.io import encode_png  # here because torchvision loads Triton

    for number in numbers:
        scene, key = draw_scene(drawings, seed, number), f"{drawings.name} {seed} {number}"
        text, tensors = _TOLD[task](drawings, scene, key, number, names)
        sample = {"key": f"{number:08d}", "png": encode_png(paint(drawings, scene)).numpy().tobytes()}
        sample |= {"txt": text.encode()} if text else {}
        yield sample | {TARGETS_SUFFIX: save(tensors)}


Told = tuple[str, dict[str, np.ndarray]]
"""A sample's text, empty for none, and its labels."""


def _objects(drawings: Drawings, scene: Scene, key: str, number: int, names: Sequence[str]) -> Told:
    boxes, labels = objects_of(drawings, scene, names)
    return "", {"boxes": boxes, "labels": labels}


def _question(drawings: Drawings, scene: Scene, key: str, number: int, names: Sequence[str]) -> Told:
    asked = ask(drawings, scene, key, number)
    return asked.text, {"labels": np.array([ANSWERS.index(asked.answer)])}


def _statement(drawings: Drawings, scene: Scene, key: str, number: int, names: Sequence[str]) -> Told:
    stated = state(drawings, scene, key, number)
    return stated.text, {"labels": np.array([FITS.index(stated.fit)])}


_TOLD: dict[str, Callable[[Drawings, Scene, str, int, Sequence[str]], Told]] = {
    "detection": _objects,
    "question": _question,
    "entailment": _statement,
}
