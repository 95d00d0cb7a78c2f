"""The endless stream of an indexed source: which sample is where, what replaces an unusable one, and whose
caption a mismatch borrows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flava_ds.data.order import hash64, sample_seed, uniforms
from flava_ds.data.samples import CAPTION_STREAM, Sample, tags_of
from flava_ds.data.skip_log import SkipLog
from flava_ds.data.sources import MAX_ATTEMPTS, MAX_PARTNERS
from flava_ds.storage.faults import SampleFault

if TYPE_CHECKING:
    from flava_ds.data.indexed import IndexedShards

_REPLACEMENT = 3


class IndexedDraws:
    """Samples by their positions in the source's endless stream; epoch = position // samples.

    The replacement of an unusable sample and the caption that a mismatch borrows depend only on the sample's
    position, not on rank, micro-batch or worker. The stream divides into global batches, one per optimizer
    step that draws the source: step = position // global_batch_size.
    """

    def __init__(self, source: IndexedShards) -> None:
        self.source, self.config = source, source.config
        skip_list = source.decoder.skip_list
        reads_images = skip_list is not None and skip_list.reads_images
        self._borrows_by = ("caption", "image") if reads_images else ("caption",)

    def samples(self, positions: np.ndarray, skips: SkipLog) -> Iterator[Sample]:
        """Yields the sample at each position, or its replacement."""
        indices, seeds, draws = self.locate(positions)
        skips.epoch = int(positions[0]) // len(self.source)
        for row, position in enumerate(positions.tolist()):
            found = self._try(int(indices[row]), int(seeds[row]), float(draws[row]), skips)
            yield found if found is not None else self._replacement(position, skips)

    def partners(
        self,
        positions: np.ndarray,
        rows: np.ndarray,
        draws: np.ndarray,
        batch: Sequence[Sample],
        *,
        tags: bool = False,
    ) -> Iterator[Iterator[str]]:
        """Yields captions at up to MAX_PARTNERS other positions of the step's global batch, or their tags.

        Starts at the position that the draw picks. Another rank may hold those samples, so each caption is
        recomputed: it is the one that the stream draws at that position in this epoch.
        """
        size, positions = self.config.global_batch_size(self.source.name), positions[rows]
        own, others = positions % size, size - 1
        turns = np.arange(min(others, MAX_PARTNERS))
        first = (draws * others).astype(np.int64)
        places = (own[:, None] + 1 + (first[:, None] + turns) % max(1, others)) % size
        located = self.locate(((positions - own)[:, None] + places).ravel())
        for row in range(len(positions)):
            rows_of_one = slice(row * len(turns), (row + 1) * len(turns))
            yield self._lent(tags, *(values[rows_of_one] for values in located))

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns sample numbers, seeds and caption draws in [0, 1) at positions of the stream: [b] each."""
        epochs, places = np.divmod(positions, len(self.source))
        indices = self.source.order.at(epochs, places)
        seeds = sample_seed(self.config.seed, self.source.seed, epochs, indices)
        return indices, seeds, uniforms(seeds, 1, stream=CAPTION_STREAM)[:, 0]

    def _replacement(self, position: int, skips: SkipLog) -> Sample:
        """Draws samples for the position of an unusable one until one is usable."""
        seed, own, size = self.config.seed, self.source.seed, len(self.source)
        before = skips.reasons.copy()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            index = int(hash64(_REPLACEMENT, seed, own, position, attempt) % np.uint64(size))
            new_seed = int(sample_seed(seed, own, position // size, index, attempt))
            found = self._try(index, new_seed, None, skips)
            if found is not None:
                return found
        raise skips.none_usable(skips.reasons - before)

    def _lent(self, tags: bool, indices: np.ndarray, seeds: np.ndarray, draws: np.ndarray) -> Iterator[str]:
        """Yields the captions of samples, or the tags of those that have any, read one by one.

        Reads only the text or the regions, so the result is the same on every rank, whether or not the image
        can be decoded. Skips samples without a usable caption and those on the skip list; a list of images is
        the one case where the image is read for a caption, too.
        """
        only = ("regions",) if tags else self._borrows_by
        for index, seed, draw in zip(indices.tolist(), seeds.tolist(), draws.tolist(), strict=True):
            try:
                sample = self.source.decode(self.source.read(index, only), index, seed, draw)
            except SampleFault:
                continue
            if text := tags_of(sample) if tags else sample.text:
                yield text

    def _try(self, index: int, seed: int, draw: float | None, skips: SkipLog) -> Sample | None:
        """Reads and decodes one sample; returns None when it is unusable."""
        try:
            sample = self.source.decode(self.source.read(index), index, seed, draw)
        except SampleFault as fault:
            skips.bad(self.source.describe(index), fault)
            return None
        skips.good()
        return sample
