"""Visual Genome (region_descriptions.json): one sample per image with about fifty phrases and their boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flava_ds.prepare.annotations import Annotated, Dropped, captioned, clean, json_array


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields each image once; its key is the image id.

    `boxes` holds [x, y, width, height] in pixels of each caption's region.

    Source: readme of the Visual Genome data dumps. Dumps of version 1.0 name the image in `image_id`, later
    ones in `id`.
    """
    for path in paths:
        for image in json_array(path):
            number = image["id"] if "id" in image else image["image_id"]
            regions = [(clean(region["phrase"]), region) for region in image["regions"]]
            regions = [(phrase, region) for phrase, region in regions if phrase]
            boxes = [[region[side] for side in ("x", "y", "width", "height")] for _, region in regions]
            paths_of_image = tuple(f"{folder}{number}.jpg" for folder in ("", "VG_100K/", "VG_100K_2/"))
            yield captioned(
                (phrase for phrase, _ in regions),
                key=f"vg-{number}",
                images=paths_of_image,
                record={"boxes": boxes},
            )
