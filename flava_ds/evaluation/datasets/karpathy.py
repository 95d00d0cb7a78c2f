"""Flickr30K and COCO in Karpathy's splits: a JSON file next to the published images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.evaluation.labelled import CaptionedImages
from flava_ds.evaluation.stored import Files

CAPTIONS = 5
"""Captions per image. A few of COCO's have six or seven; the published protocols use the first five."""


@dataclass(frozen=True)
class KarpathySplit:
    """Images with five captions each, listed in dataset_*.json."""

    name: str
    folder: str
    licence: str
    origin: str
    json_name: str
    image_folders: tuple[str, ...]
    """Possible folders of the images, relative to the data set's folder."""
    splits: tuple[str, ...] = ("test", "val", "train")

    @property
    def layout(self) -> str:
        """Describes the JSON file and the folder of images."""
        return f"{self.json_name} and the images in {' or '.join(self.image_folders)}"

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for the JSON file; its splits are known once it is read."""
        return (folder / self.json_name).is_file()

    def read(self, folder: Path, split: str) -> CaptionedImages:
        """Lists a split's images with their captions, in the file's order.

        Raises: DataError if the JSON has another layout, or an image is missing.
        """
        file = folder / self.json_name
        try:
            images = json.loads(file.read_text(encoding="utf-8"))["images"]
            chosen = [entry for entry in images if entry["split"] == split]
            names = [Path(entry.get("filepath", "")) / entry["filename"] for entry in chosen]
            captions = tuple(
                tuple(said["raw"].strip() for said in entry["sentences"])[:CAPTIONS] for entry in chosen
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}: not Karpathy's JSON, an object with images[] of filename, split and "
                f"sentences[].raw ({type(error).__name__}: {error}); {self.origin}"
            ) from error
        bare = [str(name) for name, said in zip(names, captions, strict=True) if not said]
        if bare:
            raise DataError(f"{file}: image {bare[0]} has no caption; get the file again")
        files = [_find(folder, self.image_folders, name) for name in names]
        keys = tuple(name.as_posix() for name in names)
        return CaptionedImages(self.name, keys, Files(files), captions)


def _find(folder: Path, places: tuple[str, ...], name: Path) -> Path:
    """Returns an image's file. COCO's JSON names a subfolder that the images may or may not be in."""
    candidates = [folder / place / part for place in places for part in (name, Path(name.name))]
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(
        f"{folder}: image {name} is in none of {', '.join(places)}; unpack all of the published images there"
    )
