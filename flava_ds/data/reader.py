"""Positions of a source's endless stream to a Batch, with unusable samples replaced."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.data.collate import Collator
from flava_ds.data.faults import SampleFault
from flava_ds.data.index import counted
from flava_ds.data.order import hash64, sample_at, sample_seed, uniforms
from flava_ds.data.sources import CAPTION_STREAM, MIN_SEEN, Sample, ShardSource
from flava_ds.errors import DataError

log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 200
_REPLACEMENT = 3
_LOGGED_FIRST, _LOGGED_EVERY = 5, 1000


class BatchReader:
    """Reads, decodes and collates samples of one source by their positions in its stream; epoch = position // samples."""

    def __init__(self, config: Config, source: ShardSource) -> None:
        self.config, self.source = config, source
        self.collator = Collator(config, source.source)
        self.skips = SkipLog(source)

    def batch(self, positions: np.ndarray) -> Batch:
        """Returns the batch at `positions`. What replaces an unusable sample depends on its position alone, not on rank or worker.

        Shapes:
            positions  [b]  int64
        Raises: DataError when too large a share of the samples is unusable.
        """
        seed, number, size = self.config.seed, self.source.number, len(self.source)
        epochs, places = np.divmod(positions, size)
        indices = sample_at(seed, number, epochs, places, size, shuffle=self.config.data.shuffle)
        seeds = sample_seed(seed, number, epochs, indices)
        draws = uniforms(seeds, 1, stream=CAPTION_STREAM)[:, 0].tolist()
        skipped: Counter[str] = Counter()
        samples = []
        for row, (index, sample) in enumerate(zip(indices.tolist(), seeds.tolist(), strict=True)):
            found = self._try(index, sample, draws[row], skipped)
            attempt = 0
            while found is None:
                attempt += 1
                if attempt > _MAX_ATTEMPTS:
                    raise DataError(f"source '{self.source.name}': {attempt} samples in a row are unusable: {self.skips.summary()}; mend the shards")
                index = int(hash64(_REPLACEMENT, seed, number, positions[row], attempt) % np.uint64(size))
                found = self._try(index, int(sample_seed(seed, number, epochs[row], index, attempt)), None, skipped)
            samples.append(found)
        return self.collator(samples, skipped)

    def _try(self, index: int, seed: int, draw: float | None, skipped: Counter[str]) -> Sample | None:
        """Reads and decodes one sample; None when it is unusable."""
        try:
            sample = self.source.decode(self.source.read(index), index, seed, draw)
        except SampleFault as fault:
            skipped[fault.reason] += 1
            self.skips.bad(index, fault)
            return None
        self.skips.good()
        return sample


class SkipLog:
    """Counts unusable samples of a source in this process, logs some of them, and stops a run that loses too many."""

    def __init__(self, source: ShardSource) -> None:
        self.source, self.seen, self.reasons, self.example = source, 0, Counter(), ""

    def good(self) -> None:
        """Counts a usable sample."""
        self.seen += 1

    def bad(self, index: int, fault: SampleFault) -> None:
        """Counts an unusable sample. Raises: DataError above the source's max_skipped_share of at least MIN_SEEN samples."""
        self.seen += 1
        self.reasons[fault.reason] += 1
        self.example = f"{self.source.where(index)}: {fault}"
        lost = sum(self.reasons.values())
        if lost <= _LOGGED_FIRST or lost % _LOGGED_EVERY == 0:
            log.warning("source '%s': skipped %s (%d of %d seen by this process)", self.source.name, self.example, lost, self.seen)
        limit = self.source.source.max_skipped_share
        if self.seen >= MIN_SEEN and lost > limit * self.seen:
            raise DataError(
                f"source '{self.source.name}': {self.summary()}, more than max_skipped_share {limit:.1%}; last: {self.example}. "
                "Mend the shards or raise the share"
            )

    def summary(self) -> str:
        """Writes the share and the count of each reason."""
        lost = sum(self.reasons.values())
        return f"{lost} of {self.seen} samples ({lost / max(1, self.seen):.1%}) are unusable: {counted(self.reasons)}"
