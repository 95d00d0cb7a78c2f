"""Published data sets of pictures with one class each: what all of their readers share."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flava_ds.errors import DataError, UserError, did_you_mean
from flava_ds.evaluation.datasets.image_folder import class_folders
from flava_ds.evaluation.labelled import DEFAULT_TEMPLATES, Fold, LabelledImages
from flava_ds.evaluation.stored import Files, Load, Parts, read_bytes

MAGIC = (b"\x89PNG", b"\xff\xd8", b"RIFF")
"""How the formats begin that the training decoder reads; the rest goes to Pillow: some sets hold PPM, and the
Pets have a few GIF and BMP files that are called .jpg."""
FOLDERS = {"test": "test", "val": "valid", "train": "train"}
"""Split -> folder, in the sets that OpenAI has published with CLIP."""


@dataclass(frozen=True, eq=False)
class Listing:
    """What a reader found: where the pictures are, and their classes.

    Shapes:
        labels  [N]  int64, into `class_names`
    """

    keys: tuple[str, ...]
    load: Load
    labels: np.ndarray
    class_names: tuple[str, ...]
    folds: tuple[Fold, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One way to split a data set.

    `needed` lists, for each split, the files and folders that must be there; the first split is reported on.
    """

    name: str
    needed: tuple[tuple[str, tuple[str, ...]], ...]
    read: Callable[[Path, str], Listing]


@dataclass(frozen=True)
class PublishedImages:
    """A data set of labelled pictures in its published layout, split in one of the published ways: in the one
    that is `chosen`, or else in the first, which the paper's numbers are of.
    """

    name: str
    folder: str
    licence: str
    origin: str
    layout: str
    variants: tuple[Variant, ...]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    chosen: str | None = None

    @property
    def usual(self) -> str:
        """The way to split it that the paper's numbers are of."""
        return self.variants[0].name

    @property
    def variant(self) -> str:
        """The way in use."""
        return self.chosen or self.usual

    @property
    def _in_use(self) -> Variant:
        return next(variant for variant in self.variants if variant.name == self.variant)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the variant in use."""
        return tuple(split for split, _ in self._in_use.needed)

    def with_variant(self, name: str) -> PublishedImages:
        """Returns the data set split in another way.

        Raises: UserError with the known ways.
        """
        known = [variant.name for variant in self.variants]
        if name not in known:
            raise UserError(
                f"{self.name} has no splits '{name}'; there are {', '.join(known)}{did_you_mean(name, known)}"
            )
        return dataclasses.replace(self, chosen=None if name == self.usual else name)

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for the files and folders that a split needs; without a split, for those of any."""
        needed = dict(self._in_use.needed)
        wanted = [needed[split]] if split in needed else list(needed.values()) if split is None else []
        return any(all((folder / path).exists() for path in paths) for paths in wanted)

    def read(self, folder: Path, split: str) -> LabelledImages:
        """Lists a split; pictures are read when they are needed.

        Raises: DataError naming the file that is missing, damaged or of another layout.
        """
        found = self._in_use.read(folder, split)
        outside = np.flatnonzero((found.labels < 0) | (found.labels >= len(found.class_names)))
        if len(outside):
            raise DataError(
                f"{folder}: {found.keys[outside[0]]} has class {found.labels[outside[0]]}, but {self.name} "
                f"has {len(found.class_names)} classes; get the labels again"
            )
        listed = found.keys, found.load, found.labels, found.class_names
        return LabelledImages(self.name, *listed, self.templates, found.folds)


def all_needing(splits: Iterable[str], *paths: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Returns what a Variant needs whose splits are all in the same files and folders."""
    return tuple((split, paths) for split in splits)


def split_as_published(
    needed: dict[str, tuple[str, ...]], read: Callable[[Path, str], Listing]
) -> tuple[Variant, ...]:
    """Returns the one variant of a data set whose authors publish its splits."""
    return (Variant("published", tuple(needed.items()), read),)


def split_in_folders(*classes: str) -> tuple[Variant, ...]:
    """Returns the one variant of a data set whose splits are FOLDERS of a folder per class; `classes` are
    those that must be there.
    """
    needed = {split: tuple(f"{name}/{own}" for own in classes or ("",)) for split, name in FOLDERS.items()}
    return split_as_published(needed, _read_folders)


def _read_folders(root: Path, split: str) -> Listing:
    there = [root / folder for folder in FOLDERS.values() if (root / folder).is_dir()]
    return by_class_folder(root / FOLDERS[split], folders_of(there))


def of_files(
    root: Path, named: Iterable[tuple[str, int]], class_names: Sequence[str], listed_in: Path | None = None
) -> Listing:
    """Lists pictures by their path under `root` and class.

    Raises: DataError naming the first picture that `listed_in` names and that is not there.
    """
    pairs = list(named)
    keys = tuple(key for key, _ in pairs)
    if listed_in is not None:
        missing = [key for key in keys if not (root / key).is_file()]
        if missing:
            raise DataError(
                f"{listed_in} lists {missing[0]}, which is not in {root} ({len(missing):,} of {len(keys):,} "
                "pictures are missing); unpack the whole archive there"
            )
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    load = Files([root / key for key in keys], read_picture)
    return Listing(keys, load, labels, tuple(class_names))


def of_array(
    pixels: np.ndarray, labels: np.ndarray, class_names: Sequence[str], prefix: str, files: Sequence[Path]
) -> Listing:
    """Lists pictures that one array holds, read from `files`: [N H W] grey or [N 3 H W] in colour, uint8."""
    keys = tuple(f"{prefix}/{row}" for row in range(len(labels)))

    def load(row: int) -> Tensor:
        picture = torch.from_numpy(np.array(pixels[row]))
        return picture.expand(3, *picture.shape[-2:]).contiguous()

    return Listing(keys, Parts(load, files), np.asarray(labels, dtype=np.int64), tuple(class_names))


def pictures_in(folder: Path, suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".ppm")) -> list[str]:
    """Returns the names of a folder's pictures, sorted. Raises: DataError when there are none."""
    try:
        found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in suffixes)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); unpack the archive there") from error
    if not found:
        raise DataError(f"{folder}: no pictures ({', '.join(suffixes)}); unpack the whole archive there")
    return found


def folders_in(folder: Path) -> list[str]:
    """Returns the names of a folder's folders, sorted. Raises: DataError when there are none."""
    found = class_folders(folder)
    if not found:
        raise DataError(f"{folder}: no folders, one for each class; unpack the whole archive there")
    return found


def folders_of(splits: Iterable[Path]) -> list[str]:
    """Returns the classes of all splits, sorted, so that a number means the same in each.

    Raises: DataError for a split without any.
    """
    return sorted(set().union(*(folders_in(split) for split in splits)))


def by_class_folder(root: Path, classes: Sequence[str]) -> Listing:
    """Lists ROOT/CLASS/*.jpg. Raises: DataError, also for a folder that is none of the classes."""
    number = number_of(classes, root)
    named = [
        (f"{name}/{picture}", number(name))
        for name in folders_in(root)
        for picture in pictures_in(root / name)
    ]
    return of_files(root, named, classes)


def read_picture(file: Path) -> Tensor | bytes:
    """Reads a picture; decodes what the training decoder does not. Raises: DataError."""
    data = read_bytes(file)
    if data.startswith(MAGIC):
        return data
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads them to
        raise DataError(f"{file}: no picture ({error}); unpack the archive again") from error


def lines_of(file: Path) -> list[str]:
    """Returns a text file's lines that are not blank. Raises: DataError."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); get the file again") from error


def json_of(file: Path) -> Any:
    """Returns a JSON file's content. Raises: DataError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}); get the file again") from error


def mat_of(file: Path, field: str) -> np.ndarray:
    """Returns one field of a MATLAB file. Raises: DataError; UserError where scipy is not installed."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f"{file.name} needs scipy; `pip install 'flava_ds[eval]'`") from error
    try:
        return np.atleast_1d(loadmat(file, squeeze_me=True, struct_as_record=True)[field])
    except KeyError as error:
        raise DataError(f"{file}: has no field {error}; get the file again") from error
    except Exception as error:  # a damaged file ends in any kind of error
        raise DataError(f"{file}: not a MATLAB file ({error}); get the file again") from error


def idx_of(file: Path) -> np.ndarray:
    """Returns the array of an idx file as MNIST's authors publish them. Raises: DataError."""
    data = read_bytes(file)
    axes = data[3] if len(data) > 3 and data[:3] == b"\0\0\x08" else 0
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes]) if axes and len(data) >= 4 + 4 * axes else ()
    if not shape or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise DataError(f"{file}: not an idx file of bytes (unpacked from its .gz); get the file again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def number_of(names: Sequence[str], file: Path) -> Callable[[str], int]:
    """Returns a function from a class's name to its number, which raises DataError for an unknown one."""
    numbers = {name: number for number, name in enumerate(names)}

    def look_up(name: str) -> int:
        if name not in numbers:
            raise DataError(f"{file}: names the class '{name}', which is none of the {len(numbers)} known")
        return numbers[name]

    return look_up
