"""What torchvision's readers list of the same published layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torchvision.datasets as tv


def of_paths(data, files, labels):
    return [(Path(file).as_posix(), int(label)) for file, label in zip(files, labels, strict=True)]


def torchvision_reads(name, root, split):
    """Returns (file, label) as torchvision lists a split; (pixels, label) where it holds arrays."""
    as_named = {"train": "train", "val": "val", "test": "test"}
    listed = {
        "food101": tv.Food101,
        "stanford_cars": tv.StanfordCars,
        "fgvc_aircraft": tv.FGVCAircraft,
        "dtd": tv.DTD,
        "flowers102": tv.Flowers102,
        "rendered_sst2": tv.RenderedSST2,
        "oxford_pets": tv.OxfordIIITPet,
        "gtsrb": tv.GTSRB,
        "clevr_counts": tv.CLEVRClassification,
        "country211": tv.Country211,
    }
    arrays = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100, "mnist": tv.MNIST}
    if name in arrays:
        found = arrays[name](root, train=split == "train")
        return [(np.asarray(found.data[row]), int(label)) for row, label in enumerate(found.targets)]
    if name == "fer2013":
        return [(pixels.numpy(), label) for pixels, label in tv.FER2013(root, split)._samples]
    part = {
        "oxford_pets": {"train": "trainval"},
        "country211": {"val": "valid"},
        "clevr_counts": {"test": "val"},
    }.get(name, {})
    found = listed[name](root, split=part.get(split, as_named[split]))
    if name == "oxford_pets":
        return of_paths(name, found._images, found._labels)
    if hasattr(found, "_image_files"):
        labels = [label - 3 for label in found._labels] if name == "clevr_counts" else found._labels
        return of_paths(name, found._image_files, labels)
    samples = found._samples if hasattr(found, "_samples") else found.samples
    return of_paths(name, *zip(*samples, strict=True))


ORACLE = [
    (name, split)
    for name, splits in {
        **dict.fromkeys(("food101", "stanford_cars", "oxford_pets", "gtsrb", "clevr_counts"), 2),
        **dict.fromkeys(("cifar10", "cifar100", "mnist", "fer2013"), 2),
        **dict.fromkeys(("fgvc_aircraft", "dtd", "flowers102", "rendered_sst2", "country211"), 3),
    }.items()
    for split in ("test", "train", "val")[:splits]
]
