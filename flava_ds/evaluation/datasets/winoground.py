"""Winoground as its authors publish it: two images and two captions of the same words in each example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.json_lines import read_lines
from flava_ds.evaluation.labelled import CaptionedImages
from flava_ds.evaluation.stored import Files

EXAMPLES = "data/examples.jsonl"
FIELDS = ("image_0", "image_1", "caption_0", "caption_1")


@dataclass(frozen=True, eq=False)
class Contrasts(CaptionedImages):
    """Images 2k and 2k+1 are an example's, each with the caption that fits it."""

    def select(self, rows: np.ndarray) -> CaptionedImages:
        """Returns the examples that the chosen rows belong to, whole."""
        examples = np.unique(np.asarray(rows) // 2)
        return super().select(np.stack([2 * examples, 2 * examples + 1], axis=1).reshape(-1))


@dataclass(frozen=True)
class Winoground:
    """400 examples: the same words in another order, each order with the image that it fits."""

    name: str = "winoground"
    folder: str = "winoground"
    licence: str = "Getty Images' terms for the photographs: research use, no redistribution"
    origin: str = (
        "by hand, with a login: facebook/winoground on the Hugging Face Hub (400 MB), images unpacked"
    )
    layout: str = "data/examples.jsonl with image_0, image_1, caption_0 and caption_1, and data/images/*.png"
    splits: tuple[str, ...] = ("test",)

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for the examples."""
        return (folder / EXAMPLES).is_file() and split in (None, *self.splits)

    def read(self, folder: Path, split: str) -> Contrasts:
        """Lists the examples.

        Raises: DataError naming the line of another form, or an image that is not there.
        """
        examples = read_lines(
            folder / EXAMPLES, lambda entry: [str(entry[field]) for field in FIELDS], self.layout
        )
        keys = [key for example in examples for key in example[:2]]
        captions = [text for example in examples for text in example[2:]]
        files = [folder / "data/images" / (key if Path(key).suffix else f"{key}.png") for key in keys]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DataError(f"{missing[0]} is missing; unpack all of Winoground's images there")
        said = tuple((caption,) for caption in captions)
        return Contrasts(self.name, tuple(keys), Files(files), said)
