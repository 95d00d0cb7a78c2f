"""Labelled samples of any data set: images with classes, images with captions, texts with classes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from flava_ds.data.decode import check_decoded, decode_image
from flava_ds.errors import DataError
from flava_ds.evaluation.preprocessing import Transform
from flava_ds.evaluation.stored import Load, chosen, state_of
from flava_ds.storage.faults import SampleFault

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""For a data set without templates; CLIP's choice of a single one."""

Set = TypeVar("Set", "LabelledImages", "CaptionedImages", "LabelledObjects", "LabelledTexts", "LabelledPairs")


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of one set to learn from, and rows of it to report on.

    Shapes:
        train, test  [k]  int64
    """

    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, eq=False)
class Pictured:
    """A set of images. Its variants say what is known of each."""

    name: str
    keys: tuple[str, ...]
    load: Load

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def fingerprint(self) -> str:
        """Hashes the images and what is known of them, in order."""
        raise NotImplementedError

    def chosen(self, rows: np.ndarray, **known: Any) -> Self:
        """Returns the chosen rows, of which this is `known`."""
        where = np.asarray(rows, dtype=np.int64).tolist()
        keys = tuple(self.keys[row] for row in where)
        return dataclasses.replace(self, keys=keys, load=chosen(self.load, where), **known)


@dataclass(frozen=True, eq=False)
class LabelledImages(Pictured):
    """Images with one class each. A set with folds holds the training images of its folds too.

    Shapes:
        labels  [N]  int64, into `class_names`
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    folds: tuple[Fold, ...] = ()
    unnamed: str = ""
    """Which class has no name for prompts, and what to do; empty if all have one."""

    def select(self, rows: np.ndarray) -> LabelledImages:
        """Returns the chosen rows, and of each fold what is among them."""
        place = np.full(len(self), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        kept = tuple(Fold(*(_present(place[part]) for part in (f.train, f.test))) for f in self.folds)
        return self.chosen(rows, labels=self.labels[rows], folds=kept)

    @property
    def fingerprint(self) -> str:
        return _hash(self.keys, [self.class_names[label] for label in self.labels])


@dataclass(frozen=True, eq=False)
class CaptionedImages(Pictured):
    """Images with several captions each."""

    captions: tuple[tuple[str, ...], ...]

    def select(self, rows: np.ndarray) -> CaptionedImages:
        """Returns the chosen rows."""
        return self.chosen(rows, captions=tuple(self.captions[row] for row in rows))

    @property
    def fingerprint(self) -> str:
        return _hash(self.keys, self.captions)


@dataclass(frozen=True, eq=False)
class LabelledObjects(Pictured):
    """Images with the boxes and classes of their objects.

    Shapes:
        boxes   one [o 4] per image, x1 y1 x2 y2 as shares of width and height
        labels  one [o] int64 per image, into `class_names`; -1 for classes that are not among them
    """

    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    class_names: tuple[str, ...]

    def select(self, rows: np.ndarray) -> LabelledObjects:
        """Returns the chosen rows."""
        boxes, labels = (tuple(column[row] for row in rows) for column in (self.boxes, self.labels))
        return self.chosen(rows, boxes=boxes, labels=labels)

    @property
    def fingerprint(self) -> str:
        return _hash(self.keys, [own.tolist() for own in (*self.boxes, *self.labels)])


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts, or pairs of texts, with one class or one score each.

    Shapes:
        labels  [N]  int64, into `class_names`; fp64 numbers if there are no classes
    """

    name: str
    texts: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    second: tuple[str, ...] | None = None
    """Second text of each pair."""

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: np.ndarray) -> LabelledTexts:
        """Returns the chosen rows."""
        texts = tuple(self.texts[row] for row in rows)
        second = None if self.second is None else tuple(self.second[row] for row in rows)
        return dataclasses.replace(self, texts=texts, second=second, labels=self.labels[rows])

    @property
    def fingerprint(self) -> str:
        """Hashes the texts and labels, in order."""
        return _hash(self.texts, self.labels.tolist(), *([] if self.second is None else [self.second]))


@dataclass(frozen=True, eq=False)
class LabelledPairs(Pictured):
    """Images with a text and one class each; several may share an image.

    Shapes:
        labels  [N]  int64, into `class_names`
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    pictures: tuple[str, ...] = field(default=(), kw_only=True)
    """The name of each row's picture without its ending, by which stored regions are found; empty if there
    are no names."""

    def select(self, rows: np.ndarray) -> Self:
        """Returns the chosen rows."""
        texts = tuple(self.texts[row] for row in rows)
        pictures = tuple(self.pictures[row] for row in rows) if self.pictures else ()
        return self.chosen(rows, texts=texts, labels=self.labels[rows], pictures=pictures)

    @property
    def fingerprint(self) -> str:
        return _hash(self.keys, self.texts, self.labels.tolist())


@dataclass(frozen=True)
class Seen:
    """The images of a set through a transform, as the model sees them. Equal ones are encoded once."""

    images: Pictured
    transform: Transform

    def __len__(self) -> int:
        return len(self.images)

    @property
    def title(self) -> str:
        """What these are pictures of; names of files begin with it."""
        return self.images.name

    @property
    def identity(self) -> str:
        """Tells these pictures, as they lie in their files, and their transform from others, also in a later
        process.
        """
        return f"{self.images.fingerprint} {state_of(self.images.load)} {self.transform!r}"

    def batch(self, rows: Sequence[int], size: int) -> Tensor:
        """Decodes and transforms some images: [k 3 size size] uint8.

        Raises: DataError naming an image that cannot be decoded.
        """
        return torch.stack([self.transform(self.decoded(row), size) for row in rows])

    def decoded(self, row: int) -> Tensor:
        """Decodes an image: [3 H W] uint8. Raises: DataError naming one that cannot be decoded."""
        found = self.images.load(row)
        try:
            if not isinstance(found, Tensor):
                return decode_image(found)
            check_decoded(found)
            return found
        except DataError as error:
            raise DataError(f"{self.images.name}: picture '{self.images.keys[row]}': {error}") from error
        except SampleFault as fault:
            raise DataError(
                f"{self.images.name}: picture '{self.images.keys[row]}' cannot be used: {fault}; get "
                "the file again"
            ) from fault


def state_of_pictures(samples: Any) -> str:
    """Hashes the state of the files that a set's pictures lie in; empty for sets without any."""
    return state_of(getattr(samples, "load", None))


def limited(samples: Set, limit: int | None) -> Set:
    """Keeps at most `limit` samples, of each class its share, whatever the order that they lie in.

    Takes evenly spaced ones of the samples sorted by label, or as they lie where each has no single one.
    """
    if limit is None or len(samples) <= limit:
        return samples
    rows = np.arange(len(samples))
    if isinstance(samples, LabelledImages | LabelledTexts | LabelledPairs):
        rows = np.argsort(samples.labels, kind="stable")
    return samples.select(np.sort(rows[spaced(len(samples), limit)]))


def spaced(count: int, most: int) -> np.ndarray:
    """Returns at most `most` evenly spaced rows of `count`, including first and last: [k] int64."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def _present(places: np.ndarray) -> np.ndarray:
    return places[places >= 0]


def _hash(*columns: object) -> str:
    return hashlib.sha256(
        json.dumps(columns, ensure_ascii=False, default=list).encode("utf-8", "surrogatepass")
    ).hexdigest()[:16]
