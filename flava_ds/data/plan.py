"""What a batch is to contain: a family writes a plan for each source, and the collator carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Samples of one batch after augmentation and tokenisation, before any corruption.

    Shapes:
        seeds      [b]        uint64, one per sample, from (seed, source, epoch, sample)
        matched    [b]        bool, False where the caption is another sample's
        views      name -> [b c S S]  uint8, the picture at each size of the plan
        codes      [b n]      int64 codebook indices that came with the samples, or None
        input_ids  [T]        int64, packed; None without text
        lengths    [b]        tokens of each text; None without text
    """

    seeds: np.ndarray
    matched: np.ndarray
    views: Mapping[str, Tensor] = field(default_factory=dict)
    codes: np.ndarray | None = None
    input_ids: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def at(self, rows: np.ndarray) -> Draft:
        """Takes some samples: [m]."""
        index = torch.from_numpy(rows)
        ids, lengths = None, None
        if self.lengths is not None:
            assert self.input_ids is not None  # lengths come with tokens
            lengths = self.lengths[rows]
            chosen = np.zeros(len(self.seeds), dtype=bool)
            chosen[rows] = True
            ids = self.input_ids[np.repeat(chosen, self.lengths)]
        return Draft(
            seeds=self.seeds[rows],
            matched=self.matched[rows],
            views={name: view[index] for name, view in self.views.items()},
            codes=None if self.codes is None else self.codes[rows],
            input_ids=ids,
            lengths=lengths,
        )


class Tokenizer(Protocol):
    """Turns texts into ids; picklable."""

    vocab_size: int
    file: Any
    """Where its vocabulary comes from, for messages."""

    def encode_counting(self, texts: Sequence[str], max_tokens: int) -> tuple[list[np.ndarray], int]:
        """Returns each text's ids, special tokens included and cut to `max_tokens`, and how many tokens were
        cut.
        """


class Corruption(Protocol):
    """Adds named tensors to a batch: masks, labels, targets. Picklable, since loader processes run it.

    The result for one sample depends on its seed alone, never on its neighbours, ranks or loader processes.
    """

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray | Tensor]:
        """Returns new tensors of the batch."""

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        """Returns the most bytes that one sample's part of them takes."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Everything that the collator has to know about one source's batches."""

    kind: str
    views: Mapping[str, int] = field(default_factory=dict)
    """Square pictures to render from the same crop: tensor name -> edge in pixels, `pixel_values` first."""
    sent_views: tuple[str, ...] = ("pixel_values",)
    """Those that are part of every batch; the others are there for corruptions to pass on."""
    tokenizer: Tokenizer | None = None
    """None for batches without text."""
    max_tokens: int = 0
    """Longest text kept, special tokens included."""
    mismatch_probability: float = 0.0
    """Share of the samples whose caption is replaced by another sample's."""
    masked_share: float = 1.0
    """Share of the samples that the corruptions see."""
    corruptions: tuple[Corruption, ...] = ()
    stored_codes: int = 0
    """Codes per sample that come with the data; 0 for none."""

    def bytes_per_sample(self) -> int:
        """Returns the most bytes that one sample takes in a batch, but for what has a fixed size
        per sample."""
        sent = sum(3 * self.views[name] ** 2 for name in self.sent_views if name in self.views)
        corrupted = sum(corruption.bytes_per_sample(self) for corruption in self.corruptions)
        return sent + 8 * self.max_tokens + int(np.ceil(self.masked_share * corrupted))
