"""Positions of a source's endless stream to a Batch, with unusable samples replaced."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.data.collate import Collator, mismatch
from flava_ds.data.order import hash64, sample_seed, uniforms
from flava_ds.data.sources import CAPTION_STREAM, MIN_SEEN, Sample, ShardSource
from flava_ds.data.transforms import CHUNK, Empty
from flava_ds.errors import DataError
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.index import counted

log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 200
_MAX_PARTNERS = 16
_REPLACEMENT = 3
_LOGGED_FIRST, _LOGGED_EVERY = 5, 1000
_MOST_KEPT = 10_000


class BatchReader:
    """Reads, decodes and collates samples of one source by their positions in its stream; epoch = position // samples.

    The stream falls into global batches, one per optimizer step that draws the source: step = position // global_batch_size.
    """

    def __init__(self, config: Config, source: ShardSource) -> None:
        self.config, self.source = config, source
        self.plan = config.model.plan(config, source.source)
        self.collator = Collator(self.plan, source.name, source.source)
        self.skips = SkipLog(source)
        listed_by_picture = source.skip_list is not None and source.skip_list.reads_images
        self._borrows_by = ("caption", "image") if listed_by_picture else ("caption",)

    def batch(self, positions: np.ndarray, empty: Empty = torch.empty) -> Batch:
        """Returns the batch at `positions`; `empty` provides the memory for its pictures.

        What replaces an unusable sample, and the caption that a mismatch borrows, depend on the sample's position alone, not on rank, micro-batch or
        worker. Decoded pictures are let go chunk by chunk: at their own size a batch of them may be large.

        Shapes:
            positions  [b]  int64
        Raises: DataError when too large a share of the samples is unusable.
        """
        indices, seeds, draws = self._locate(positions)
        self.skips.epoch = int(positions[0]) // len(self.source)
        skipped: Counter[str] = Counter()
        samples, views = [], self.collator.empty_views(len(positions), empty)
        for start in range(0, len(positions), CHUNK):
            chunk = []
            for row in range(start, min(start + CHUNK, len(positions))):
                found = self._try(int(indices[row]), int(seeds[row]), float(draws[row]), skipped)
                chunk.append(found if found is not None else self._replacement(int(positions[row]), skipped))
            self.collator.augment(chunk, [view[start : start + CHUNK] for view in views])
            samples += [replace(sample, image=None) for sample in chunk]
        masked_rows = self._masked_rows(positions)
        batch = self.collator(samples, skipped, self._borrowed(positions, samples, masked_rows), masked_rows, views)
        return replace(batch, read=replace(batch.read, unusable=self.skips.take()))

    def _masked_rows(self, positions: np.ndarray) -> np.ndarray | None:
        """Returns the rows that are masked where only a share of a pair batch is: [m], or None for all.

        They are spread evenly over the step's global batch, whose order is random, so every rank and micro-batch has its share.
        """
        share = self.plan.masked_share
        if share == 1:
            return None
        return np.flatnonzero(is_masked(positions % self.config.global_batch_size(self.source.name), share))

    def _locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what stands at positions of the stream: sample numbers, seeds, and the draws in [0, 1) that choose captions: [b] each."""
        epochs, places = np.divmod(positions, len(self.source))
        indices = self.source.order.at(epochs, places)
        seeds = sample_seed(self.config.seed, self.source.seed, epochs, indices)
        return indices, seeds, uniforms(seeds, 1, stream=CAPTION_STREAM)[:, 0]

    def _replacement(self, position: int, skipped: Counter[str]) -> Sample:
        """Draws samples for an unusable one's position until one is usable."""
        seed, own, size = self.config.seed, self.source.seed, len(self.source)
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            index = int(hash64(_REPLACEMENT, seed, own, position, attempt) % np.uint64(size))
            found = self._try(index, int(sample_seed(seed, own, position // size, index, attempt)), None, skipped)
            if found is not None:
                return found
        raise DataError(f"source '{self.source.name}': {_MAX_ATTEMPTS + 1} samples in a row are unusable: {self.skips.summary()}; repair the shards")

    def _borrowed(self, positions: np.ndarray, samples: list[Sample], masked_rows: np.ndarray | None) -> dict[int, str]:
        """Draws the mismatches of a batch: row -> caption."""
        captions, seeds = [sample.captions for sample in samples], np.array([sample.seed for sample in samples], dtype=np.uint64)
        probability = self.plan.mismatch_probability
        return mismatch(captions, seeds, probability, lambda rows, draws: self._partners(positions[rows], draws), among=masked_rows)

    def _partners(self, positions: np.ndarray, draws: np.ndarray) -> Iterator[Iterator[str]]:
        """Yields, for each sample at `positions`, the captions that it may borrow: those at up to _MAX_PARTNERS other positions of its step's global
        batch, which another rank may hold, in turn from the one that its draw in [0, 1) picks.

        Each is the caption that the stream's sample there draws in this epoch.
        """
        size = self.config.global_batch_size(self.source.name)
        own, others = positions % size, size - 1
        turns = np.arange(min(others, _MAX_PARTNERS))
        places = (own[:, None] + 1 + ((draws * others).astype(np.int64)[:, None] + turns) % max(1, others)) % size
        located = self._locate(((positions - own)[:, None] + places).ravel())
        for row in range(len(positions)):
            yield self._captions_at(*(values[row * len(turns) : (row + 1) * len(turns)] for values in located))

    def _captions_at(self, indices: np.ndarray, seeds: np.ndarray, draws: np.ndarray) -> Iterator[str]:
        """Yields the captions of samples, read one by one. Only the text is read, so it is the same on every rank and whether or not the picture beside
        it can be decoded; a sample without a usable caption is passed over, and so is one on the skip list, for which the picture is read where the
        list names pictures.
        """
        for index, seed, draw in zip(indices.tolist(), seeds.tolist(), draws.tolist(), strict=True):
            try:
                text = self.source.decode(self.source.read(index, self._borrows_by), index, seed, draw).text
            except SampleFault:
                continue
            if text is not None:
                yield text

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


def is_masked(places: np.ndarray, share: float) -> np.ndarray:
    """Tells which places of a global batch are masked: [b] int64 -> [b] bool; any k neighbours hold floor(k * share) of them at least."""
    return np.floor((places + 1) * share + 1e-9) > np.floor(places * share + 1e-9)


class SkipLog:
    """Counts unusable samples of a source in this process, logs some of them, and stops a run that loses too many."""

    def __init__(self, source: ShardSource) -> None:
        self.source, self.seen, self.reasons, self.example = source, 0, Counter(), ""
        self.epoch, self._found = 0, deque(maxlen=_MOST_KEPT)

    def good(self) -> None:
        """Counts a usable sample."""
        self.seen += 1

    def bad(self, index: int, fault: SampleFault) -> None:
        """Counts an unusable sample; one on the skip list is no loss. Raises: DataError above max_skipped_share of at least MIN_SEEN samples."""
        self.seen += 1
        self.reasons[fault.reason] += 1
        if fault.reason == faults.SKIP_LIST:
            return
        self._found.append(self.source.describe(index) | {"reason": fault.reason, "detail": fault.detail, "epoch": self.epoch})
        self.example = f"{self.source.where(index)}: {fault}"
        lost = self._lost()
        if lost <= _LOGGED_FIRST or lost % _LOGGED_EVERY == 0:
            log.warning("source '%s': skipped %s (%d of %d seen by this process)", self.source.name, self.example, lost, self.seen)
        limit = self.source.source.max_skipped_share
        if self.seen >= MIN_SEEN and lost > limit * self.seen:
            raise DataError(
                f"source '{self.source.name}': {self.summary()}, more than max_skipped_share {limit:.1%}; last: {self.example}. "
                f"Repair the shards or raise --data.sources.{self.source.name}.max-skipped-share"
            )

    def take(self) -> tuple[dict[str, Any], ...]:
        """Hands over what was unusable since the last call, the latest _MOST_KEPT of it."""
        found = tuple(self._found)
        self._found.clear()
        return found

    def summary(self) -> str:
        """Writes the share that is lost and the count of each reason."""
        lost = self._lost()
        return f"{lost} of {self.seen} samples ({lost / max(1, self.seen):.1%}) are unusable: {counted(self.reasons)}"

    def _lost(self) -> int:
        """Counts the samples that were meant to be used and cannot be."""
        return sum(self.reasons.values()) - self.reasons[faults.SKIP_LIST]
