"""SNLI-VE as published: does a picture of Flickr30K entail a sentence?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.evaluation.datasets.json_lines import find_images, read_lines
from flava_ds.evaluation.labelled import LabelledPairs
from flava_ds.evaluation.stored import Files

PICTURE_FIELDS = ("Flickr30K_ID", "Flikr30kID")
"""Field with the picture's name in different versions of the files; with or without .jpg."""


@dataclass(frozen=True)
class SnliVe:
    """snli_ve_SPLIT.jsonl and Flickr30K's pictures. Labels are the original ones, of which 9 % are wrong."""

    name: str = "snli_ve"
    folder: str = "snli_ve"
    licence: str = "SNLI's CC BY-SA 4.0; the pictures by Flickr's terms of use: research, no redistribution"
    origin: str = (
        "by hand: snli_ve_{train,dev,test}.jsonl (about 350 MB) from SNLI-VE's page, flickr30k-images (4.4 "
        "GB) by the form on Flickr30K's page"
    )
    layout: str = (
        "snli_ve_train.jsonl, snli_ve_dev.jsonl and snli_ve_test.jsonl with Flickr30K_ID, sentence2 and "
        "gold_label, and the pictures in flickr30k-images/, here or in ../flickr30k/"
    )
    splits: tuple[str, ...] = ("test", "dev", "train")
    class_names: tuple[str, ...] = ("contradiction", "neutral", "entailment")

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for a split's file, or for any of them."""
        return any((folder / _file(name)).is_file() for name in ([split] if split else self.splits))

    def read(self, folder: Path, split: str) -> LabelledPairs:
        """Reads a split.

        Raises: DataError naming a line without a label or with another layout, or a missing picture.
        """
        rows = read_lines(folder / _file(split), self._row, self.layout)
        keys, texts, labels = zip(*rows, strict=True) if rows else ((), (), ())
        names = ("flickr30k-images", "flickr30k_images")
        places = [parent / name for parent in (folder, folder.parent / "flickr30k") for name in names]
        files = find_images(places, [f"{key}.jpg" for key in keys], self.origin)
        numbers = np.array(labels, dtype=np.int64)
        return LabelledPairs(self.name, keys, Files(files), texts, numbers, self.class_names, pictures=keys)

    def _row(self, entry: dict[str, Any]) -> tuple[str, str, int]:
        """Returns the picture's name, the sentence and the class."""
        field = next((name for name in PICTURE_FIELDS if name in entry), PICTURE_FIELDS[0])
        label = entry["gold_label"]
        if label not in self.class_names:
            raise ValueError(f"gold_label is {label!r}, none of {', '.join(self.class_names)}")
        return str(entry[field]).removesuffix(".jpg"), entry["sentence2"], self.class_names.index(label)


def _file(split: str) -> str:
    return f"snli_ve_{split}.jsonl"
