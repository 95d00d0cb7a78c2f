"""The losses that a run is trained with, on other shards: the same tokens, masks, codes and objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flava_ds.batch import Batch
from flava_ds.codebook.frozen import add_codebook
from flava_ds.config import Config, SourceConfig
from flava_ds.data.reader import BatchReader
from flava_ds.data.sources import open_source
from flava_ds.errors import DataError
from flava_ds.evaluation.protocols import LossSums
from flava_ds.evaluation.shares import Share

GALLERY = 256
"""Samples of a batch over all ranks, or a multiple of their number near it; contrastive losses depend on it.
"""


class RunLosses:
    """A task's objectives, as a capability of every model whose run has some.

    Objectives with a training state (a teacher, a queue) are left out: their targets are not in the weights.
    """

    def __init__(self, config: Config, task: Any) -> None:
        self.config, self.task = config, task
        stateful = {name.partition(".")[0] for name in task.states}
        self._measured = [name for name in task.objectives if name not in stateful]

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of step that have a loss to measure."""
        return frozenset(kind for name in self._measured for kind in self.task.objectives[name].kinds)

    @torch.no_grad()
    def sums(self, kind: str, shards: Path, most: int, share: Share) -> Iterator[dict[str, LossSums]]:
        """Yields, per batch over all ranks, each objective's sum, number of terms and correct predictions.

        Reads the first `most` samples of the order that the run's seed gives. Settings are those of the run's
        first source of the kind.

        Raises: DataError if there are fewer samples than ranks.
        """
        most = min(most, open_source(self._config(kind, shards), kind).length or most)
        size = min(max(GALLERY, share.parts), most) // share.parts * share.parts
        if size == 0:
            raise DataError(f"{shards}: {most} samples are too few for {share.parts} ranks; use fewer")
        config, rows = self._config(kind, shards, size), size // share.parts
        device = next(self.task.parameters()).device
        add_codebook(self.task, config, device)
        reader = BatchReader(config, open_source(config, kind))  # mismatches come from a batch of this size
        for first in range(0, most - size + 1, size):
            (start,) = share.mine(range(first, first + size, rows))
            batch, terms = self._read(reader, np.arange(start, start + rows), share)
            batch = self.task.told(batch.to(device), terms, size)
            found = self.task.losses(self.task.complete(batch), only=terms)
            parts = [(found[name].sum, found[name].metrics.get("correct")) for name in terms]
            mine = [number.double() for part in parts for number in part if number is not None]
            totals = iter(share.add(lambda mine=mine: mine))  # type: ignore[misc]
            yield {
                name: LossSums(
                    float(next(totals)), terms[name], None if right is None else float(next(totals))
                )
                for name, (_, right) in zip(terms, parts, strict=True)
            }

    def _read(self, reader: BatchReader, positions: np.ndarray, share: Share) -> tuple[Batch, dict[str, int]]:
        """Reads this rank's part of a batch; also returns the terms of each objective over all ranks.

        If a rank cannot read, all raise here and not in the midst of an objective's collective.
        """
        read: list[Batch] = []

        def count() -> list[torch.Tensor]:
            read.append(reader.batch(positions))
            counts = self.task.counts(read[0])
            return [torch.tensor([counts.get(name, 0) for name in self._measured], dtype=torch.float64)]

        (terms,) = share.add(count)
        active = self.task.active(read[0].kind)
        found = zip(self._measured, map(int, terms.tolist()), strict=True)
        return read[0], {name: total for name, total in found if name in active}

    def _config(self, kind: str, shards: Path, size: int = 1) -> Config:
        """Returns the run's configuration with one source, called as its kind: the held-out shards."""
        of_kind = [own for own in self.config.data.sources.values() if own.step_kind == kind]
        first = of_kind[0] if of_kind else SourceConfig(kind=kind, shards="")  # type: ignore[arg-type]
        source = dataclasses.replace(
            first,
            shards=str(shards),
            weight=1.0,
            seed=None,
            reader=None,
            reading="indexed",
            pipeline=None,
            skip_list=None,
            global_batch_size=size,
        )
        return self.config.with_sources({kind: source})
