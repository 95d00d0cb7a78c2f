"""Labels of scenes for tasks: boxes of drawings, a question, and a statement that may follow."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from flava_ds.demo.scene_texts import ANSWERS, FITS, ask, state
from flava_ds.demo.scenes import CANVAS, Drawings, Scene, folder_of
from flava_ds.evaluation.samples import read_samples

SUFFIX = "safetensors"
"""Members with labels are called KEY.TASK.safetensors."""


@dataclass(frozen=True)
class SceneLabels:
    """What tasks ask of a scene: a text for each task that has one, and a member with labels for each."""

    texts: Mapping[str, str]
    members: Mapping[str, bytes]


@functools.lru_cache(maxsize=4)
def subgroups(root: Path) -> tuple[str, ...]:
    """Names the classes of drawings: the subgroups of the training styles, sorted."""
    return tuple(sorted(set(map(str, read_samples(folder_of(Path(root), "train")).column("subgroup")))))


def objects_of(drawings: Drawings, scene: Scene, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes of a scene's drawings, as shares, and their classes: [o 4] fp32, [o] int64.

    A class that is not among `names` is -1.
    """
    labels = [drawings.subgroups[row] for row in scene.rows]
    numbers = [names.index(label) if label in names else -1 for label in labels]
    return np.array(scene.boxes, dtype=np.float32) / CANVAS, np.array(numbers, dtype=np.int64)


def labels_of(drawings: Drawings, scene: Scene, key: str, number: int, names: Sequence[str]) -> SceneLabels:
    """Returns a scene's labels. `number` chooses the kinds of question and statement; objects of a class that
    is not among `names` are left out.
    """
    boxes, labels = objects_of(drawings, scene, names)
    asked, stated = ask(drawings, scene, key, number), state(drawings, scene, key, number)
    tensors = {
        "detection": {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]},
        "question": {"labels": np.array([ANSWERS.index(asked.answer)])},
        "entailment": {"labels": np.array([FITS.index(stated.fit)])},
    }
    members = {f"{task}.{SUFFIX}": save(own) for task, own in tensors.items()}
    return SceneLabels({"question": asked.text, "entailment": stated.text}, members)
