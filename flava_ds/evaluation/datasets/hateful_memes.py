"""The Hateful Memes challenge as published: memes with their text, hateful or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.errors import MissingPicturesError
from flava_ds.evaluation.datasets.json_lines import find_images, read_lines
from flava_ds.evaluation.labelled import LabelledPairs
from flava_ds.evaluation.stored import Files


@dataclass(frozen=True)
class HatefulMemes:
    """SPLIT.jsonl and img/. The first release's test.jsonl has no labels and is not a split."""

    name: str = "hateful_memes"
    folder: str = "hateful_memes"
    licence: str = "Facebook's Hateful Memes dataset licence: research, no redistribution"
    origin: str = (
        "by hand: hateful_memes.zip (about 4 GB); its site is gone, and some mirrors lack 535 pictures of "
        "the unseen splits"
    )
    layout: str = (
        "train.jsonl, dev_unseen.jsonl or dev_seen.jsonl, test_unseen.jsonl or test_seen.jsonl with id, img, "
        "label and text, and the pictures in img/"
    )
    splits: tuple[str, ...] = ("test_unseen", "test_seen", "dev_unseen", "dev_seen", "train")
    published_on: tuple[str, ...] = ("test_unseen", "test_seen")
    """The paper does not say which."""
    class_names: tuple[str, ...] = ("not hateful", "hateful")

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for a split's file, or for any of them."""
        return any((folder / f"{name}.jsonl").is_file() for name in ([split] if split else self.splits))

    def read(self, folder: Path, split: str) -> LabelledPairs:
        """Reads a split.

        Raises: DataError naming a line without a label or with another layout; MissingPicturesError.
        """
        rows = read_lines(folder / f"{split}.jsonl", _row, self.layout)
        keys, names, texts, labels = zip(*rows, strict=True) if rows else ((), (), (), ())
        try:
            files = find_images([folder / "img"], names, self.origin)
        except MissingPicturesError as error:
            seen = split.replace("unseen", "seen")
            if seen == split or not self.is_here(folder, seen):
                raise
            raise MissingPicturesError(f"{error}; --split {seen} reports on the earlier pictures") from error
        numbers = np.array(labels, dtype=np.int64)
        pictures = tuple(Path(name).stem for name in names)
        return LabelledPairs(
            self.name, keys, Files(files), texts, numbers, self.class_names, pictures=pictures
        )


def _row(entry: dict[str, Any]) -> tuple[str, str, str, int]:
    """Returns a meme's id, its picture's name, its text and its class."""
    if entry["label"] not in (0, 1):
        raise ValueError(f"label is {entry['label']!r}, neither 0 nor 1")
    return str(entry["id"]), Path(entry["img"]).name, entry["text"], int(entry["label"])
