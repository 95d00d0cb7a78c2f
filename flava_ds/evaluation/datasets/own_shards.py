"""Your own sets: shards whose .json has a label, captions, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.image_folder import CLASSES, TEMPLATES, class_names, read_templates
from flava_ds.evaluation.labelled import CaptionedImages, LabelledImages, LabelledPairs
from flava_ds.evaluation.samples import Samples, read_samples
from flava_ds.evaluation.stored import Parts

LABEL, CAPTIONS = "label", "captions"


@dataclass(frozen=True)
class OwnShards:
    """Shards like those for training, one folder per split. Reads each sample's "label", its "captions" (all
    that the .json has, or else the .txt), or the "label" of the picture and its .txt together.
    """

    name: str = "own"
    folder: str = "own"
    reads: Literal["label", "captions", "label and text"] = "label"
    licence: str = "yours"
    origin: str = "write them with img2dataset, or any tar writer; keep them out of training"
    layout: str = (
        "test/ and, for probes and fine-tuning, train/, each with *.tar of KEY.jpg, KEY.txt (a text) and "
        f'KEY.json with "{LABEL}" or "{CAPTIONS}", or the shards themselves for tasks without training '
        f"images; {CLASSES} (label -> name) and {TEMPLATES} (prompts with a {{}}) are optional"
    )
    splits: tuple[str, ...] = ("test", "val", "train")

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for shards."""
        wanted = [split] if split else self.splits
        return any(any(_place(folder, name).glob("*.tar")) for name in wanted)

    def read(self, folder: Path, split: str) -> LabelledImages | CaptionedImages | LabelledPairs:
        """Reads a split's labels, captions or texts; its images are read when a task asks for them.

        Raises: DataError for a split that is not there, or naming what a sample lacks.
        """
        if not self.is_here(folder, split):
            raise DataError(f"{_place(folder, split)}: no *.tar of split '{split}'; expected {self.layout}")
        place = _place(folder, split)
        samples = read_samples(place, captions=self.reads != "label")
        load = Parts(samples.encoded_images.__getitem__, sorted(place.glob("*.tar")))
        if self.reads == "captions":
            listed = zip(samples.keys, samples.captions, samples.records, strict=True)
            captions = tuple(_captions(place, *sample) for sample in listed)
            return CaptionedImages(self.name, samples.keys, load, captions)
        # Classes come from all splits, so that a label means the same in each of them.
        labels = {
            name: _labels(_place(folder, name), samples if name == split else None)
            for name in self._splits(folder)
        }
        classes = sorted(set().union(*labels.values()))
        numbers = np.array([classes.index(label) for label in labels[split]], dtype=np.int64)
        names, unnamed = class_names(folder / CLASSES, classes)
        if self.reads == "label and text":
            return LabelledPairs(
                self.name, samples.keys, load, samples.captions, numbers, names, pictures=samples.keys
            )
        templates = read_templates(folder / TEMPLATES)
        return LabelledImages(self.name, samples.keys, load, numbers, names, templates, unnamed=unnamed)

    def _splits(self, folder: Path) -> list[str]:
        return [name for name in self.splits if self.is_here(folder, name)]


def _place(folder: Path, split: str) -> Path:
    """Returns where a split's shards lie: in its folder; "test" may be the folder itself."""
    inside = folder / split
    return folder if split == "test" and not inside.is_dir() else inside


def _captions(folder: Path, key: str, text: str, record: dict[str, Any]) -> tuple[str, ...]:
    """Returns a sample's captions: all of its .json, as `prepare` writes them, or else its .txt.

    Raises: DataError naming a sample whose .json has something else there.
    """
    if CAPTIONS not in record:
        return (text,)
    found = record[CAPTIONS]
    listed = found if isinstance(found, list) else []
    texts = [own.strip() if isinstance(own, str) else "" for own in listed]
    if not texts or not all(texts):
        raise DataError(
            f"{folder}: sample '{key}' has \"{CAPTIONS}\" in its .json that are no list of texts; write one, "
            "or leave the field out, so that the .txt counts"
        )
    return tuple(texts)


def _labels(folder: Path, samples: Samples | None) -> list[str]:
    """Returns every sample's label; reads no images unless `samples` are given."""
    samples = samples or read_samples(folder, images=False, captions=False)
    known = [record.get(LABEL) for record in samples.records]
    unlabelled = [label is None or not str(label).strip() for label in known]
    lacking = [key for key, is_lacking in zip(samples.keys, unlabelled, strict=True) if is_lacking]
    if lacking:
        raise DataError(
            f"{folder}: sample '{lacking[0]}' has no \"{LABEL}\" in its .json; write one for every sample"
        )
    for key, label in zip(samples.keys, known, strict=True):
        if not (isinstance(label, str | int) or isinstance(label, float) and label.is_integer()):
            raise DataError(
                f"{folder}: sample '{key}': \"{LABEL}\" {label!r:.80} in its .json names no class; "
                "write a text or a whole number"
            )
    return [str(int(label) if isinstance(label, float) else label) for label in known]
