"""Dropout of hidden states, drawn from the samples' seeds: every split of a step, and every pass over the
same samples, drops the same elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from flava_kernels.dropout import dropout, row_keys
from torch import Tensor

from flava_ds.batch import Batch

ATTENTION, MLP, CROSS, ACTIVATION = range(4)
"""Places in a block: what attention, the MLP and cross-attention add, and the MLP's inner activations."""
PLACES = 4
EMBEDDINGS = 0
"""The layer of embeddings; blocks count from 1. It has one place, the first."""


@dataclass(frozen=True)
class HiddenDropout:
    """What one pass over packed sequences drops.

    Shapes:
        keys  [T]  int64, one for each row (flava_kernels.dropout.row_keys)
    """

    keys: Tensor
    probability: float
    layer: int = EMBEDDINGS

    def __call__(self, hidden: Tensor, place: int = ATTENTION) -> Tensor:
        """Drops elements, and scales up the others: [T d] -> [T d]."""
        return dropout(hidden, self.keys, self.layer * PLACES + place, self.probability)

    def of(self, layer: int) -> HiddenDropout:
        """Returns what a layer drops of the same rows."""
        return replace(self, layer=layer)

    def at(self, rows: Tensor) -> HiddenDropout:
        """Returns what is dropped of some rows: [k]."""
        return replace(self, keys=self.keys.index_select(0, rows))


def hidden_dropout(
    batch: Batch, probability: float, cu_seqlens: Tensor, total: int, stream: int, *, on: bool = True
) -> HiddenDropout | None:
    """Returns what a pass over one sequence of each of the batch's samples drops; None for nothing.

    Shapes:
        cu_seqlens  [b+1]  int32; `total` rows in all
        stream             another one for each pass that a step has: views, second texts, a teacher's
    Raises: ValueError for a batch without the samples' seeds.
    """
    if not on or not probability:
        return None
    seeds = batch.get("sample_seeds")
    if seeds is None:
        raise ValueError(
            f"hidden_dropout is {probability:g}, but the batch of '{batch.source}' has no 'sample_seeds' to "
            "draw it from; set `sample_seeds` in its BatchPlan"
        )
    return HiddenDropout(row_keys(seeds, cu_seqlens, total, stream), probability)


def joined(parts: Sequence[HiddenDropout | None]) -> HiddenDropout | None:
    """Returns what passes over sequences drop that are laid behind each other."""
    told = [part for part in parts if part is not None]
    return replace(told[0], keys=torch.cat([part.keys for part in told])) if told else None
