"""Reads batches by position from a source's endless stream, or from one of its lanes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.data.collate import Collator, mismatch
from flava_ds.data.samples import Sample, amiss, seeds_of, tags_of
from flava_ds.data.skip_log import SkipLog
from flava_ds.data.sources import Draws, Lane, Source, with_parts
from flava_ds.data.transforms import CHUNK, CHUNK_BYTES, Empty
from flava_ds.errors import DataError, UserError


class BatchReader:
    """Draws and collates the samples of one source.

    Picklable; opens the source on the first batch, in the process that reads.
    """

    def __init__(self, config: Config, source: Source, lane: Lane | None = None) -> None:
        """`lane` describes the ranks and workers; `batch` is given the worker's number."""
        self.config, self.source, self.lane = config, source, lane or Lane()
        self.plan = config.model.plan(config, source.source)
        self.collator = Collator(self.plan, source.name, source.source)
        self.skips = SkipLog(source.name, source.source.max_skipped_share)
        self._opened: dict[int, Draws] = {}

    def draws(self, lane: int = 0) -> Draws:
        """Returns the source, opened for one of the lanes."""
        if lane not in self._opened:
            opened = self.source.open(replace(self.lane, number=lane))
            self._opened[lane] = with_parts(self.source.name, opened, Draws)
        return self._opened[lane]

    def batch(self, positions: np.ndarray, empty: Empty = torch.empty, lane: int = 0) -> Batch:
        """Returns the batch at `positions` of a lane; `empty` allocates the memory for its images.

        Works in chunks and frees the decoded images of each: at full size, a whole batch of them may be
        large.

        Shapes:
            positions  [b]  int64, consecutive
        Raises: DataError when too many samples are unusable, or one is missing or has another form.
        """
        drawn = self._drawn(positions, lane)
        samples: list[Sample] = []
        views = self.collator.empty_views(len(positions), empty)
        while chunk := _chunk(drawn, CHUNK):
            start, end = len(samples), len(samples) + len(chunk)
            self.collator.augment(chunk, [view[start:end] for view in views])
            samples += [replace(sample, image=None) for sample in chunk]
            chunk.clear()  # before the next ones are decoded, so that one chunk's images are held, not two
        masked_rows = self._masked_rows(positions)
        borrowed = self._borrowed(self.draws(lane), positions, samples, masked_rows)
        tags = self._borrowed_tags(self.draws(lane), positions, samples)
        batch = self.collator(samples, self.skips.take_counts(), borrowed, masked_rows, views, tags)
        return replace(batch, read=replace(batch.read, unusable=self.skips.take()))

    def _drawn(self, positions: np.ndarray, lane: int) -> Iterator[Sample]:
        """Yields the source's sample for each position, after a look at it. What the code of a reader raises
        is passed on with a note of whose it is.

        Raises: DataError for a position without a sample, or with one that no batch can hold, and for more
        samples than positions.
        """
        drawn: Iterator[Sample] | None = None
        for position in positions:
            at = f"its reader {type(self.source).__qualname__} at position {position}"
            try:
                drawn = iter(self.draws(lane).samples(positions, self.skips)) if drawn is None else drawn
                sample = next(drawn, None)
            except UserError:
                raise
            except Exception as error:
                error.add_note(f"source '{self.source.name}': raised by {at}")
                raise
            if (told := amiss(sample, self.source.source)) is not None:
                raise DataError(f"source '{self.source.name}': {at} yields {told}")
            yield cast(Sample, sample)
        if drawn is not None and next(drawn, None) is not None:
            raise DataError(
                f"source '{self.source.name}': its reader {type(self.source).__qualname__} yields more "
                f"samples than the {len(positions)} positions from {positions[0]} on that it was asked for"
            )

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": {}}

    def _masked_rows(self, positions: np.ndarray) -> np.ndarray | None:
        """Returns the rows to mask if the plan masks only a share of a batch: [m], or None for all.

        They are spread evenly over the step's global batch, so every rank and micro-batch gets its share. The
        order of samples is random, so this does not bias which samples are masked.
        """
        share = self.plan.masked_share
        if share == 1:
            return None
        return np.flatnonzero(is_masked(positions % self.config.global_batch_size(self.source.name), share))

    def _borrowed(
        self, draws: Draws, positions: np.ndarray, samples: list[Sample], masked_rows: np.ndarray | None
    ) -> dict[int, str]:
        """Draws the mismatches of a batch: row -> caption."""
        return mismatch(
            [sample.captions for sample in samples],
            seeds_of(samples),
            self.plan.mismatch_probability,
            lambda rows, picks: draws.partners(positions, np.asarray(rows), picks, samples),
            among=masked_rows,
        )

    def _borrowed_tags(self, draws: Draws, positions: np.ndarray, samples: list[Sample]) -> dict[int, str]:
        """Draws which samples that keep their caption get another's tags: row -> tags."""
        if not self.plan.wrong_tags_probability:
            return {}
        return mismatch(
            [(tags_of(sample),) for sample in samples],
            seeds_of(samples),
            self.plan.wrong_tags_probability,
            lambda rows, picks: draws.partners(positions, np.asarray(rows), picks, samples, tags=True),
            above=self.plan.mismatch_probability,
        )


def _chunk(drawn: Iterator[Sample], most: int) -> list[Sample]:
    """Takes samples until there are `most`, or their pictures fill CHUNK_BYTES."""
    chunk: list[Sample] = []
    held = 0
    while len(chunk) < most and held < CHUNK_BYTES and (sample := next(drawn, None)) is not None:
        chunk.append(sample)
        held += 0 if sample.image is None else sample.image.nbytes
    return chunk


def is_masked(places: np.ndarray, share: float) -> np.ndarray:
    """Returns which places of a global batch are masked: [b] int64 -> [b] bool.

    Any k neighbours contain at least floor(k * share) of them.
    """
    return np.floor((places + 1) * share + 1e-9) > np.floor(places * share + 1e-9)
