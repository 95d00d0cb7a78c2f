"""The contracts between data, model and objectives.

Axes, one legend for docstrings, einops patterns and comments: `b` micro-batch, `g` batch over all ranks, `w` world size,
`c` channels, `gh gw` patch grid, `p` patch edge, `n` patches, `t` text tokens, `T` packed tokens, `s` any sequence, `d` hidden,
`h` heads, `e` head size, `f` MLP width, `v` vocabulary or codebook, `r` projection, `k` rows kept by a mask, `a` crops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position without a target in Hugging Face's dense layout; packed batches list their rows instead."""


class Kind(StrEnum):
    """What one optimizer step trains on."""

    IMAGE = "image"
    TEXT = "text"
    PAIR = "pair"


class View(StrEnum):
    """One encoder's output on one version of the input."""

    IMAGE = "image"
    IMAGE_MASKED = "image_masked"
    TEXT = "text"
    TEXT_MASKED = "text_masked"
    MULTIMODAL = "multimodal"
    MULTIMODAL_MASKED = "multimodal_masked"
    CROPS = "crops"


MASKED_VIEWS = frozenset({View.IMAGE_MASKED, View.TEXT_MASKED, View.MULTIMODAL_MASKED})


@dataclass(frozen=True)
class Packed:
    """Sequences laid end to end, without padding.

    Shapes:
        hidden      [T d]
        cu_seqlens  [b+1]  int32, cu_seqlens[i] is where sequence i starts, the last entry is T
        max_seqlen  int    the longest sequence
    """

    hidden: Tensor
    cu_seqlens: Tensor
    max_seqlen: int

    @property
    def first_rows(self) -> Tensor:
        """Row of each sequence's first token, its CLS: [b]."""
        return self.cu_seqlens[:-1].long()


@dataclass(frozen=True)
class SequenceLayout:
    """Positions in the fused sequence [CLS_M | CLS_I, n patches | CLS_T, text] of each sample.

    Shapes:
        text_cu_seqlens  [b+1]  int32, of the packed text alone
    """

    num_patches: int
    text_cu_seqlens: Tensor
    text_max_seqlen: int

    @property
    def prefix(self) -> int:
        """Tokens before the text of a sample: CLS_M, CLS_I and the patches."""
        return 2 + self.num_patches

    @property
    def cu_seqlens(self) -> Tensor:
        """Of the fused sequences: [b+1] int32."""
        cu = self.text_cu_seqlens
        return cu + self.prefix * torch.arange(cu.shape[0], device=cu.device, dtype=cu.dtype)

    @property
    def max_seqlen(self) -> int:
        """The longest fused sequence."""
        return self.prefix + self.text_max_seqlen

    def patch_rows(self, patches: Tensor) -> Tensor:
        """Fused rows of flat patch indices into [b n]: [k] -> [k]."""
        sample = patches // self.num_patches
        return self.cu_seqlens[sample].long() + 2 + patches % self.num_patches

    def text_rows(self, tokens: Tensor) -> Tensor:
        """Fused rows of packed text rows: [k] -> [k]."""
        sample = torch.bucketize(tokens, self.text_cu_seqlens[1:].long(), right=True)
        return tokens + self.prefix * (sample + 1)


def image_patch_rows(patches: Tensor, num_patches: int) -> Tensor:
    """Rows in packed image sequences [b*(1+n)] of flat patch indices into [b n]: [k] -> [k]."""
    return patches + patches // num_patches + 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one kind, collated, corrupted and packed. Fields that the kind lacks are None.

    Row indices come from the collator, so nothing in a step waits for the device; in pair batches `mim_rows` and `mlm_rows`
    already leave out mismatched samples. Where only a share of a pair batch is masked, `masked` is the batch of these samples; the masked
    views and their objectives read that one, everything else the whole.

    Shapes:
        pixel_values           [b c H W]  uint8 in [0, 255]; the image encoder normalises
        codebook_pixel_values  [b c H W]  uint8, the same crop at the codebook's size; the same tensor when sizes agree
        image_codes            [b n]      int64 codebook indices; None until computed on the device
        bool_masked_pos        [b n]      bool, patches replaced by the mask token
        mim_rows               [k]        int64, flat indices into [b n] of the patches to predict
        input_ids              [T]        int64, packed, each text with its CLS and SEP
        input_ids_masked       [T]        int64
        cu_seqlens             [b+1]      int32 over the text
        mlm_rows               [k]        int64, rows of [T] to predict
        mlm_labels             [k]        int64, the original ids there
        itm_labels             [b]        int64, 1 match, 0 mismatch
        matched_rows           [k]        int64, samples whose caption is their own
    """

    kind: Kind
    source: str
    size: int
    keys: tuple[str, ...] = ()
    pixel_values: Tensor | None = None
    codebook_pixel_values: Tensor | None = None
    image_codes: Tensor | None = None
    bool_masked_pos: Tensor | None = None
    mim_rows: Tensor | None = None
    input_ids: Tensor | None = None
    input_ids_masked: Tensor | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int = 0
    mlm_rows: Tensor | None = None
    mlm_labels: Tensor | None = None
    itm_labels: Tensor | None = None
    matched_rows: Tensor | None = None
    masked: Batch | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    """Unusable samples met while this batch was read: reason -> count."""
    unusable: tuple[dict[str, Any], ...] = ()
    """The same samples, each with source, shard, key, offset, reason, detail and epoch, but for those on the skip list."""
    cut_tokens: int = 0
    """Tokens of its texts beyond the source's max_tokens, which are left out."""

    def of(self, views: Collection[View]) -> Batch:
        """Returns the batch that views of one side, clean or masked, are made from."""
        return self.masked if self.masked is not None and MASKED_VIEWS.issuperset(views) else self

    def to(self, device: torch.device) -> Batch:
        """Returns the batch with every tensor on `device`; copies from pinned memory do not block."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Returns the batch with every tensor in pinned memory; called by torch's DataLoader."""
        return self.each(Tensor.pin_memory)

    def each(self, change: Callable[[Tensor], Any]) -> Batch:
        """Applies `change` to every tensor."""
        changed: dict[str, Any] = {f.name: change(value) for f in dataclasses.fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        if self.masked is not None:
            changed["masked"] = self.masked.each(change)
        return dataclasses.replace(self, **changed)


@dataclass(frozen=True)
class Loss:
    """A sum and a count, never a mean: the mean is taken over the count of all ranks and micro-batches.

    Shapes:
        sum      scalar  fp32, with gradient
        count    int     terms of the sum, known on the host from the collator
        metrics  name -> scalar sum over the same terms (e.g. correct predictions), without gradient
    """

    sum: Tensor
    count: int
    metrics: dict[str, Tensor] = field(default_factory=dict)
