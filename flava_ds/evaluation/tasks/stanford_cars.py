"""Stanford Cars: 196 makes, models and years. The paper has its probe (Table C.1)."""

from __future__ import annotations

from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    mat_of,
    of_files,
    split_as_published,
)
from flava_ds.evaluation.probe import ImageProbe

ANNOTATIONS = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}


def read(folder: Path, split: str) -> Listing:
    """Reads a split's annotations, whose classes count from 1.

    Raises: DataError for the annotations of the test split without labels, which the devkit holds.
    """
    file = folder / ANNOTATIONS[split]
    annotations = mat_of(file, "annotations")
    if "class" not in (annotations.dtype.names or ()):
        raise DataError(f"{file}: has no labels; get cars_test_annos_withlabels.mat, the devkit's has none")
    named = [(str(entry["fname"]), int(entry["class"]) - 1) for entry in annotations]
    names = [str(name) for name in mat_of(folder / "devkit/cars_meta.mat", "class_names")]
    return of_files(folder / f"cars_{split}", named, names, file)


DATA = PublishedImages(
    name="stanford_cars",
    folder="stanford_cars",
    licence="research use, by ImageNet's terms",
    origin="by hand: cars_train.tgz, cars_test.tgz (2 GB in all), car_devkit.tgz and "
    "cars_test_annos_withlabels.mat; Stanford's page is gone, copies are kept elsewhere",
    layout="devkit/, cars_train/*.jpg, cars_test/*.jpg and cars_test_annos_withlabels.mat",
    variants=split_as_published(
        {
            split: (file, "devkit/cars_meta.mat", f"cars_{split}")
            for split, file in sorted(ANNOTATIONS.items())
        },
        read,
    ),
)
TASKS = (ImageProbe("stanford_cars_probe", DATA),)
