"""COCO captions (captions_train2014.json, ..., or 2017): one sample per image, with five or more captions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flava_ds.prepare.annotations import NO_CAPTION, Annotated, Dropped, clean, load_json


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields each image once; its key is the image id in twelve digits, like the file names of 2017.

    Source: cocodataset.org, "Data format", section caption generation.
    """
    for path in paths:
        content = load_json(path, "images", "annotations")
        captions: dict[int, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(clean(annotation["caption"]))
        for image in content["images"]:
            found = tuple(text for text in captions.get(image["id"], ()) if text)
            if not found:
                yield Dropped(NO_CAPTION, image["file_name"])
                continue
            record = {"image_id": image["id"], "width": image.get("width"), "height": image.get("height")}
            yield Annotated(
                key=key_of(image["id"]),
                captions=found,
                images=image_paths(image["file_name"]),
                url=image.get("coco_url"),
                record=record,
            )


def key_of(image_id: int) -> str:
    """Returns the key of an image id."""
    return f"{int(image_id):012d}"


def image_paths(file_name: str) -> tuple[str, ...]:
    """Returns where an image may be: in the folder, or in the subfolder of its split, as in the archives."""
    split = re.match(r"COCO_(\w+)_\d+\.", file_name)
    folders = (split[1],) if split else ("train2017", "val2017")
    return file_name, *(f"{folder}/{file_name}" for folder in folders)
