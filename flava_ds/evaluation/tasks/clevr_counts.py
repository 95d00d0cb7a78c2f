"""CLEVR: how many objects a scene has, three to ten. The paper has its probe (Table C.1)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import Listing, PublishedImages, Variant, json_of, of_files
from flava_ds.evaluation.probe import ImageProbe

FEWEST, MOST = 3, 10
PART = {"test": "val", "train": "train"}
CLIP_SIZES = {"test": 500, "train": 2000}


def read(sizes: dict[str, int] | None, folder: Path, split: str) -> Listing:
    """Reads the scenes of a part, CLEVR's test part being without them.

    `sizes` takes that many, drawn from seed 0: CLIP's 2,000 and 500 are not published.

    Raises: DataError when the file has no scenes.
    """
    listed = folder / f"scenes/CLEVR_{PART[split]}_scenes.json"
    try:
        scenes = [(s["image_filename"], len(s["objects"]) - FEWEST) for s in json_of(listed)["scenes"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{listed}: has no scenes with objects ({error}); get the file again") from error
    if sizes is not None:
        rows = np.random.RandomState(0).permutation(len(scenes))[: sizes[split]]
        scenes = [scenes[row] for row in np.sort(rows)]
    names = [str(count) for count in range(FEWEST, MOST + 1)]
    return of_files(folder / "images" / PART[split], scenes, names, listed)


NEEDED = tuple((s, (f"scenes/CLEVR_{part}_scenes.json", f"images/{part}")) for s, part in PART.items())
DATA = PublishedImages(
    name="clevr_counts",
    folder="clevr/CLEVR_v1.0",
    licence="CC-BY-4.0",
    origin="by hand: CLEVR_v1.0.zip (18 GB) from Stanford's CLEVR page, unpacked",
    layout="scenes/CLEVR_{train,val}_scenes.json and images/{train,val}/*.png",
    variants=(
        Variant("vissl", NEEDED, partial(read, None)),
        Variant("clip", NEEDED, partial(read, CLIP_SIZES)),
    ),
)
TASKS = (ImageProbe("clevr_counts_probe", DATA),)
