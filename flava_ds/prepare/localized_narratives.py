"""Localized Narratives: JSON Lines with one spoken description per line; each sentence becomes a caption."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flava_ds.data.two_segments import sentences
from flava_ds.prepare.annotations import Annotated, Dropped, captioned, clean, json_lines


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields one sample per narrative.

    The paper counts 1.9 M pairs of 13.8 words, where there are 0.85 M narratives of about 36 words: it must
    have split them into sentences, as this does.

    Source: google.github.io/localized-narratives, file formats (dataset_id, image_id, annotator_id, caption;
    traces are not read).
    """
    for path in paths:
        for row in json_lines(path):
            dataset, image = str(row["dataset_id"]), str(row["image_id"])
            key = re.sub(r"[^\w-]", "_", f"{dataset}-{image}-{row['annotator_id']}")
            yield captioned(
                sentences(clean(row.get("caption"))),
                key=key,
                images=image_paths(dataset, image),
                record={"dataset_id": dataset, "image_id": image},
            )


def image_paths(dataset: str, image_id: str) -> tuple[str, ...]:
    """Returns where the image of another data set may be: in the folder, or in the subfolder of its split."""
    name = f"{int(image_id):012d}.jpg" if "coco" in dataset.lower() else f"{image_id}.jpg"
    split = dataset.split("_")[-1]
    return name, f"{split}/{name}", f"{dataset}/{name}"
