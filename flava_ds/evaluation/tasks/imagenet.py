"""ImageNet-1k: probe (Table C.1), zero-shot classification and neighbours on the 50,000 validation images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flava_ds.errors import DataError, UserError
from flava_ds.evaluation.datasets.image_folder import (
    CLASSES,
    TEMPLATES,
    class_folders,
    class_names,
    read_templates,
)
from flava_ds.evaluation.datasets.published_images import (
    Listing,
    PublishedImages,
    by_class_folder,
    folders_of,
    lines_of,
    mat_of,
    number_of,
    of_files,
    pictures_in,
    split_as_published,
)
from flava_ds.evaluation.labelled import LabelledImages
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.zero_shot import ZeroShot

DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH = f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt"


def read(folder: Path, split: str) -> Listing:
    """Lists train/WNID/*.JPEG, or val/ laid out like it or flat, as its archive unpacks.

    A class's number is its WNID's place in sorted order; the devkit numbers classes otherwise.

    Raises: DataError when the validation pictures have no labels.
    """
    laid_out = [path for path in (folder / "train", folder / "val") if class_folders(path)]
    if folder / "val" in laid_out or not (folder / DEVKIT / "meta.mat").is_file():
        wnids, wnid_of = folders_of(laid_out), {}
    else:
        synsets = mat_of(folder / DEVKIT / "meta.mat", "synsets")
        wnid_of = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
        wnids = sorted(wnid_of.values())
    if split == "train" or folder / "val" in laid_out:
        return by_class_folder(folder / ("train" if split == "train" else "val"), wnids)
    pictures = pictures_in(folder / "val")
    if not (folder / TRUTH).is_file():
        raise DataError(
            f"{folder / 'val'}: pictures without labels; unpack ILSVRC2012_devkit_t12.tar.gz beside it, or "
            "sort them into folders by WNID"
        )
    truth = [int(line) for line in lines_of(folder / TRUTH) if line.isdigit()]
    if len(truth) != len(pictures) or not set(truth) <= set(wnid_of):
        raise DataError(
            f"{folder / TRUTH}: {len(truth)} labels for {len(pictures)} pictures; unpack both again"
        )
    number = number_of(wnids, folder / TRUTH)
    named = [(key, number(wnid_of[label])) for key, label in zip(pictures, truth, strict=True)]
    return of_files(folder / "val", named, wnids)


class Prompted(PublishedImages):
    """The same images with what classes are called in prompts, and the prompts.

    Both come from classes.json (WNID -> name) and templates.txt beside the images, or from open_clip, which
    has OpenAI's names and 80 templates.
    """

    def read(self, folder: Path, split: str) -> LabelledImages:
        """Lists a split. Raises: DataError; UserError when there are neither files nor open_clip."""
        images = super().read(folder, split)
        names = list(images.class_names)
        given, unnamed = [file for file in (CLASSES, TEMPLATES) if (folder / file).is_file()], ""
        if len(given) < 2:
            called, templates = of_open_clip(folder, names)
        if CLASSES in given:
            called, unnamed = class_names(folder / CLASSES, names)
        if TEMPLATES in given:
            templates = read_templates(folder / TEMPLATES)
        return dataclasses.replace(images, class_names=called, templates=templates, unnamed=unnamed)


def of_open_clip(folder: Path, wnids: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the 1,000 names in the order of sorted WNIDs, and the templates.

    Raises: UserError where open_clip is not installed; DataError when these are not the 1,000 classes.
    """
    try:
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
    except ImportError as error:
        raise UserError(
            f"{folder}: prompts need {CLASSES} and {TEMPLATES} there, or `pip install 'flava_ds[clip]'`"
        ) from error
    if len(wnids) != len(IMAGENET_CLASSNAMES) and not (folder / CLASSES).is_file():
        raise DataError(
            f"{folder}: {len(wnids)} classes, but open_clip names ImageNet's {len(IMAGENET_CLASSNAMES)}; "
            f"write {CLASSES}, which maps each WNID to its name"
        )
    return tuple(IMAGENET_CLASSNAMES), tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


DATA = PublishedImages(
    name="imagenet",
    folder="imagenet",
    licence="ImageNet's terms of access: research and education, no redistribution",
    origin="by hand, with a login: ILSVRC2012_img_train.tar (138 GB), ILSVRC2012_img_val.tar (6 GB) and, "
    "for a flat val/, ILSVRC2012_devkit_t12.tar.gz from ImageNet's page; unpack each class's .tar into its "
    "folder",
    layout="train/WNID/*.JPEG and val/WNID/*.JPEG, or val/*.JPEG with ILSVRC2012_devkit_t12/data; "
    "classes.json (WNID -> name) and templates.txt may be there",
    variants=split_as_published({"test": ("val",), "train": ("train",)}, read),
)
PROMPTED = Prompted(**vars(DATA))
TASKS = (
    ImageProbe("imagenet_probe", DATA),
    Neighbours("imagenet_neighbours", DATA),
    ZeroShot("imagenet_zero_shot", PROMPTED),
)
