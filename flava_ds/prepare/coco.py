"""COCO captions (captions_train2014.json, ..., or 2017; or Karpathy's file): one sample per image, with five
or more captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flava_ds.prepare.annotations import Annotated, Dropped, captioned, clean, load_json, require

TRAINING = ("train", "restval")
"""The splits of Karpathy's file that are trained on; restval is what val and test leave of val2014."""


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields each image once; its key is the image id in twelve digits, like the file names of 2017.

    Of Karpathy's dataset_coco.json or dataset_flickr30k.json, the images of TRAINING.

    Raises: DataError for a file of another form.
    Source: cocodataset.org, "Data format", section caption generation.
    """
    for path in paths:
        content = load_json(path, "images")
        if any("sentences" in image for image in content["images"][:1]):
            yield from _of_splits(path, content["images"])
            continue
        require(path, content, "annotations")
        captions: dict[int, list[str]] = {}
        for annotation in content["annotations"]:
            require(path, annotation, "image_id", "caption")
            captions.setdefault(annotation["image_id"], []).append(clean(annotation["caption"]))
        for image in content["images"]:
            record = {"image_id": image["id"], "width": image.get("width"), "height": image.get("height")}
            yield captioned(
                captions.get(image["id"], ()),
                called=image["file_name"],
                key=key_of(image["id"]),
                images=image_paths(image["file_name"]),
                url=image.get("coco_url"),
                record=record,
            )


def _of_splits(path: Path, images: Sequence[dict[str, Any]]) -> Iterator[Annotated | Dropped]:
    """Yields the images of Karpathy's file. Those of Flickr30k have no id; their keys are their names."""
    for image in images:
        require(path, image, "filename", "split", "sentences")
        name, identity = image["filename"], image.get("cocoid")
        if image["split"] not in TRAINING:
            yield Dropped(f"split {image['split']}", name)
        else:
            yield captioned(
                (clean(said.get("raw")) for said in image["sentences"]),
                called=name,
                key=Path(name).stem if identity is None else key_of(identity),
                images=image_paths(name),
                record={} if identity is None else {"image_id": identity},
            )


def key_of(image_id: int) -> str:
    """Returns the key of an image id."""
    return f"{int(image_id):012d}"


def image_paths(file_name: str) -> tuple[str, ...]:
    """Returns where an image may be: in the folder, or in the subfolder of its split, as in the archives."""
    split = re.match(r"COCO_(\w+)_\d+\.", file_name)
    folders = (split[1],) if split else ("train2017", "val2017")
    return file_name, *(f"{folder}/{file_name}" for folder in folders)
