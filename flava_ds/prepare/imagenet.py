"""ImageNet-1k: class folders as in the archive, train/n01440764/n01440764_10026.JPEG. Images only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.prepare.annotations import Annotated, Dropped

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields every image in the order of classes and names. Keys begin with the class folder, as ImageNet's
    file names do: in other sets of class folders each may have its 1.jpg.

    The .json holds the name of the class folder and its number among the folders.

    Raises: DataError for a folder without class folders.
    """
    for root in paths:
        classes = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
        if not classes:
            raise DataError(
                f"imagenet: '{root}' has no class folders; give the folder that contains n01440764, "
                "or one that has your pictures in a folder inside"
            )
        for number, folder in enumerate(classes):
            for file in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
                record = {"wnid": folder.name, "class": number}
                own = file.stem.startswith(f"{folder.name}_")
                key = file.stem if own else f"{folder.name}_{file.stem}"
                yield Annotated(key=key.replace(".", "_"), file=file, record=record)
