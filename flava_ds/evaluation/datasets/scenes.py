"""Questions and statements on scenes of the demo's drawings, composed when they are read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flava_ds.evaluation.labelled import LabelledObjects, LabelledPairs

COUNTS = {"unseen_style": 2_000, "unseen_concepts": 2_000, "train": 16_000}
"""Split -> scenes, each with one text."""
SEED = 0


@dataclass(frozen=True, eq=False)
class TextsOfScenes(LabelledPairs):
    """Scenes with one text each; `kinds` says of each which of the classes are possible for such a text.

    Shapes:
        kinds  [N]  int64
    """

    kinds: np.ndarray

    def select(self, rows: np.ndarray) -> TextsOfScenes:
        return dataclasses.replace(super().select(rows), kinds=self.kinds[rows])

    @property
    def are_majority(self) -> np.ndarray:
        """Says which samples are of their kind's most frequent class: [N] bool."""
        found = np.zeros(len(self), dtype=bool)
        for kind in np.unique(self.kinds):
            rows = np.flatnonzero(self.kinds == kind)
            found[rows] = self.labels[rows] == np.bincount(self.labels[rows]).argmax()
        return found


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """What all data sets made of the demo's drawings have in common: where these are, and their splits."""

    folder: str = "demo_data"
    licence: str = "each drawing's own, see flava_ds/demo/ATTRIBUTION.md"
    origin: str = "part of the package: `flava-ds demo` unpacks it to runs/demo_data, so give --data runs"
    layout: str = "pairs-train/, pairs-unseen-style/ and pairs-unseen-concepts/ of the demo's data set"
    splits: tuple[str, ...] = ("unseen_style", "unseen_concepts", "train")

    @staticmethod
    def place(folder: Path, split: str) -> Path:
        """Returns where the drawings of a split are."""
        return folder / f"pairs-{split.replace('_', '-')}"

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for the drawings of a split, or of any."""
        return any(self.place(folder, name).is_dir() for name in ([split] if split else self.splits))


@dataclass(frozen=True, kw_only=True)
class Scenes(DemoData):
    """Scenes of the demo's drawings: training styles, the same concepts in unseen styles, unseen concepts.

    With `statements`, each has a statement that it contradicts, leaves open or entails; else a question.
    """

    name: str = "scene_questions"
    statements: bool = False

    def read(self, folder: Path, split: str) -> TextsOfScenes:
        """Composes a split. Raises: DataError if the drawings are not complete."""
        # The demo stands above the evaluation, but for this one data set, which it holds.
        from flava_ds.demo.scene_texts import ANSWERS, FITS, KINDS, ask, state
        from flava_ds.demo.scenes import draw_scene, paint, read_drawings

        drawings, keys = read_drawings(folder, split), [f"{split} {SEED} {n}" for n in range(COUNTS[split])]
        scenes = [draw_scene(drawings, SEED, number) for number in range(len(keys))]
        numbered = list(enumerate(zip(scenes, keys, strict=True)))
        if self.statements:
            stated = [state(drawings, scene, key, number) for number, (scene, key) in numbered]
            names: tuple[str, ...] = FITS
            told = [(each.text, FITS.index(each.fit), 0) for each in stated]
        else:
            asked = [ask(drawings, scene, key, number) for number, (scene, key) in numbered]
            names = ANSWERS
            told = [(each.text, ANSWERS.index(each.answer), KINDS.index(each.kind)) for each in asked]
        texts, labels, kinds = zip(*told, strict=True)
        return TextsOfScenes(
            name=self.name,
            keys=tuple(keys),
            load=lambda row: paint(drawings, scenes[row]),
            texts=texts,
            labels=np.array(labels, dtype=np.int64),
            class_names=names,
            kinds=np.array(kinds, dtype=np.int64),
        )


@dataclass(frozen=True, kw_only=True)
class SceneObjects(Scenes):
    """Scenes with the boxes of their drawings, whose classes are the subgroups of the training styles."""

    name: str = "scene_objects"

    def read(self, folder: Path, split: str) -> LabelledObjects:  # type: ignore[override]  # no texts
        """Composes a split. Raises: DataError if the drawings are not complete."""
        from flava_ds.demo.scene_labels import objects_of, subgroups
        from flava_ds.demo.scenes import draw_scene, paint, read_drawings

        drawings, names = read_drawings(folder, split), subgroups(folder)
        scenes = [draw_scene(drawings, SEED, number) for number in range(COUNTS[split])]
        boxes, labels = zip(*(objects_of(drawings, scene, names) for scene in scenes), strict=True)
        return LabelledObjects(
            name=self.name,
            keys=tuple(f"{split} {SEED} {number}" for number in range(len(scenes))),
            load=lambda row: paint(drawings, scenes[row]),
            boxes=boxes,
            labels=labels,
            class_names=names,
        )
