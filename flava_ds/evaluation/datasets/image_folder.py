"""Images in one folder per class: SPLIT/CLASS/*.jpg, as torchvision's ImageFolder reads them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flava_ds.errors import DataError, first_of
from flava_ds.evaluation.labelled import DEFAULT_TEMPLATES, LabelledImages
from flava_ds.evaluation.stored import Files
from flava_ds.storage.members import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

CLASSES, TEMPLATES = "classes.json", "templates.txt"
NAMED = 5
"""Files of other formats that a warning names at most."""
_CLASSES_MAP = "it maps a class (its folder or label) to its name, or lists the names of the labels 0, 1, ..."


@dataclass(frozen=True)
class ImageFolder:
    """One folder per class in each split. A folder's name means the same class in all of them.

    A class is named after its folder, with spaces for underscores, unless classes.json (folder -> name) says
    otherwise; templates.txt has one prompt with a {} per line. Hidden files and folders do not count.
    """

    name: str = "image_folder"
    folder: str = "image_folder"
    licence: str = "that of the images"
    origin: str = "bring your own; nothing is downloaded"
    layout: str = (
        f"test/ (or val/) and, for probes and fine-tuning, train/, each with CLASS/*.jpg; {CLASSES} and "
        f"{TEMPLATES} may be there"
    )
    splits: tuple[str, ...] = ("test", "val", "train")

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for folders inside the split's folder."""
        return any(class_folders(folder / name) for name in ([split] if split else self.splits))

    def read(self, folder: Path, split: str) -> LabelledImages:
        """Lists a split's images, by class and file name.

        Raises: DataError if a class has no image, or classes.json or templates.txt cannot be used.
        """
        classes = sorted(set().union(*(class_folders(folder / name) for name in self.splits)))
        return read_classes(self.name, folder / split, folder, classes)


def read_classes(name: str, root: Path, described_in: Path, classes: list[str]) -> LabelledImages:
    """Lists the images in ROOT/CLASS, for those of the classes that are there; CLASSES and TEMPLATES are in
    `described_in`. Warns of files of other formats in these folders.

    Raises: DataError.
    """
    files, labels, others, empty = [], [], [], []
    for number, folder in enumerate(classes):
        if not (root / folder).is_dir():
            continue
        there = [path for path in sorted((root / folder).rglob("*")) if not _is_hidden(path, root)]
        found = [path for path in there if _is_image(path)]
        others += [path for path in there if not (_is_image(path) or path.is_dir())]
        empty += [] if found else [f"'{folder}'"]
        files += found
        labels += [number] * len(found)
    if empty:
        raise DataError(
            f"{root}: no images ({', '.join(IMAGE_SUFFIXES)}) of class {first_of(empty)}; add some, or "
            f"remove the folder{'s' * (len(empty) > 1)}"
        )
    _tell_others(root, others)
    names, unnamed = class_names(described_in / CLASSES, classes)
    keys = tuple(path.relative_to(root).as_posix() for path in files)
    templates = read_templates(described_in / TEMPLATES)
    numbers = np.array(labels, dtype=np.int64)
    return LabelledImages(name, keys, Files(files), numbers, names, templates, unnamed=unnamed)


def _tell_others(root: Path, others: list[Path]) -> None:
    """Warns of files that are no images, with the first one of each ending."""
    if others:
        firsts = {path.suffix.lower(): path.relative_to(root).as_posix() for path in reversed(others)}
        log.warning(
            "%s: %d file%s of other formats than %s left out, such as %s; convert the pictures among them",
            root,
            len(others),
            "s" * (len(others) > 1),
            ", ".join(IMAGE_SUFFIXES),
            ", ".join(sorted(firsts.values())[:NAMED]),
        )


def _is_hidden(path: Path, root: Path) -> bool:
    """Tells the files that other programs leave, such as .ipynb_checkpoints/ and ._*.jpg."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _is_image(path: Path) -> bool:
    return path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES


def class_names(file: Path, classes: list[str]) -> tuple[tuple[str, ...], str]:
    """Returns the names of classes, and which of them the file lacks, in a line; empty if it has all.

    The file maps classes to names; a list names the classes 0, 1, and so on. What it lacks is called after
    its folder or label, as without a file.

    Raises: DataError if the file cannot be read.
    """
    called = {name: name.replace("_", " ") for name in classes}
    if not file.is_file():
        return tuple(called.values()), ""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}); {_CLASSES_MAP}") from error
    if isinstance(known, list):
        known = {str(label): name for label, name in enumerate(known)}
    if not isinstance(known, dict):
        raise DataError(f"{file}: is neither an object nor a list; {_CLASSES_MAP}")
    missing = [name for name in classes if name not in known]
    unnamed = f"{file}: has no name for class '{missing[0]}'; {_CLASSES_MAP}" if missing else ""
    return tuple(str(known.get(name, called[name])) for name in classes), unnamed


def read_templates(file: Path) -> tuple[str, ...]:
    """Returns a data set's prompts or the default.

    Raises: DataError naming the line without a {}, or for a file without lines.
    """
    if not file.is_file():
        return DEFAULT_TEMPLATES
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: not readable ({error}); write one prompt per line, with a {{}} for the class"
        ) from error
    if not lines:
        raise DataError(
            f"{file}: is empty; write one prompt per line, with a {{}} for the class, or delete it"
        )
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong:
        raise DataError(f"{file}: {wrong[0]!r} must have exactly one {{}}, for the class name")
    return tuple(lines)


def class_folders(root: Path) -> list[str]:
    """Returns the names of a folder's folders but hidden ones, sorted; none if it is not there."""
    found = root.iterdir() if root.is_dir() else ()
    return sorted(path.name for path in found if path.is_dir() and not path.name.startswith("."))
