"""The images that the image codebook trains on: decoded, augmented, dealt by step, with some held out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from flava_ds.config import Config, SourceConfig
from flava_ds.data.indexed import IndexedShards, prepare_source
from flava_ds.data.order import Order, sample_seed
from flava_ds.data.skip_log import SkipLog
from flava_ds.data.transforms import ImageTransform, center_pixels
from flava_ds.errors import ConfigError, DataError
from flava_ds.storage.faults import SampleFault

_CACHE_BYTES = 2**29
"""Memory for decoded images; a larger source is decoded again in every epoch."""
MIN_PICTURES = 20
_SPLIT, _DEAL = 0, 1
"""Seeds of the two permutations: the held-out split, and the order of the rest."""


class PixelStream:
    """Deals the images of one or several sources at the codebook's size, with each source's augmentation.

    Batches are a pure function of the step; an epoch deals every image that is not held out once.
    """

    def __init__(self, config: Config, sources: Mapping[str, SourceConfig], held_out: int) -> None:
        """Indexes the shards and holds out `held_out` images, at most a tenth.

        Raises: ConfigError for a text source; DataError when the sources have too few images.
        """
        names = ", ".join(f"'{name}'" for name in sources)
        for name, source in sources.items():
            if source.kind == "text":
                raise ConfigError(
                    f"source '{name}' is of kind 'text'; an image codebook needs image or pair sources"
                )
        changed = {
            name: dataclasses.replace(
                source, kind="image", image_codes_key=None, regions_key=None, task=None, targets_key=None
            )
            for name, source in sources.items()
        }
        pictures = config.with_sources(changed)
        for name in sources:
            prepare_source(pictures, name)
        self._sources = [IndexedShards(pictures, name) for name in sources]
        self._skips = [SkipLog(source.name, source.source.max_skipped_share) for source in self._sources]
        self._starts = np.cumsum([0, *map(len, self._sources)])
        self._transforms = [
            ImageTransform(source.transform, (config.codebook.image_size,)) for source in sources.values()
        ]
        self._seed, self._size = config.seed, config.codebook.image_size
        self._cache: dict[int, Tensor] = {}
        self._room = _CACHE_BYTES
        total = int(self._starts[-1])
        if total < MIN_PICTURES:
            raise DataError(
                f"sources {names or '(none)'}: {total} images are too few for a codebook; at least "
                f"{MIN_PICTURES} are needed"
            )
        # computed where it is asked for: a list of all would take gigabytes for hundreds of millions
        self._split = Order(seed=config.seed, source=_SPLIT, size=total)
        self._held_out = self._split.at(0, np.arange(min(held_out, total // 10)))
        self._left = total - len(self._held_out)

    @property
    def pictures(self) -> int:
        """How many there are to learn from."""
        return self._left

    @property
    def held_out_pictures(self) -> int:
        """How many are held out."""
        return len(self._held_out)

    @property
    def fingerprint(self) -> str:
        """Hashes the keys of all pictures, and where they lie and how long they are in their shards."""
        parts = [f"{source.table.fingerprint} {source.table.layout}" for source in self._sources]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def batch(self, step: int, size: int) -> Tensor:
        """Returns the images of one step without those that cannot be decoded: [b c H W] uint8."""
        epochs, places = np.divmod(step * size + np.arange(size), self._left)
        dealt = Order(seed=self._seed, source=_DEAL, size=self._left).at(epochs, places)
        pictures = self._split.at(0, len(self._held_out) + dealt)
        images, rows = self._read(pictures)
        pictures, seeds = pictures[rows], sample_seed(self._seed, _DEAL, epochs[rows], pictures[rows])
        source = self._source_of(pictures)
        parts = [np.flatnonzero(source == number) for number in np.unique(source)]
        images_of_parts = []
        for part in parts:
            transform = self._transforms[source[part[0]]]
            images_of_parts.append(transform([images[row] for row in part], seeds[part])[0])
        return torch.cat(images_of_parts)

    def held_out(self) -> Tensor:
        """Returns the held-out images, not augmented: [b c H W] uint8."""
        return center_pixels(self._read(self._held_out)[0], self._size)

    def _source_of(self, pictures: np.ndarray) -> np.ndarray:
        """Returns the number of the source of each image: [b] -> [b]."""
        return np.searchsorted(self._starts, pictures, side="right") - 1

    def _read(self, pictures: np.ndarray) -> tuple[list[Tensor], np.ndarray]:
        """Decodes images; returns the usable ones and their places in the argument.

        Too many unusable ones end the run.
        """
        images, rows = [], []
        for row, picture in enumerate(pictures.tolist()):
            image = self._cache.get(picture)
            image = self._decode(picture) if image is None else image
            if image is not None:
                images.append(image)
                rows.append(row)
        if not images:
            raise DataError(f"none of {len(pictures)} images could be decoded; {self._skips[0].summary()}")
        return images, np.array(rows)

    def _decode(self, picture: int) -> Tensor | None:
        """Decodes one image and caches it while there is room; returns None when it is unusable."""
        number = int(self._source_of(np.array([picture]))[0])
        index = picture - int(self._starts[number])
        try:
            image = self._sources[number].decode(self._sources[number].read(index), index, 0).image
        except SampleFault as fault:
            self._skips[number].bad(self._sources[number].describe(index), fault)
            return None
        assert image is not None  # the sources are of kind 'image'
        self._skips[number].good()
        if image.numel() <= self._room:
            self._cache[picture] = image
            self._room -= image.numel()
        return image
