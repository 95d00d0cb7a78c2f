"""The data that travels from the loader to the losses: batches of named tensors, and packed sequences.

Axes, one legend for docstrings, einops patterns and comments: `b` micro-batch, `g` batch over all ranks, `w`
world size, `c` channels, `gh gw` patch grid, `p` patch edge, `n` patches, `t` text tokens, `T` packed tokens,
`s` any sequence, `d` hidden, `h` heads, `e` head size, `f` MLP width, `v` vocabulary or codebook, `r`
projection, `k` rows kept by a mask, `m` samples of a batch that are masked, `a` crops, `o` regions or
objects of an image, `O` packed ones, `y` features of a region, `z` classes of a detector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of positions without a target in Hugging Face's dense layout, and of padding in a list of labels;
packed batches use row indices.
"""
PADDING_ROW = -1
"""What a list of rows ends in if it is padded."""


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


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """What the loader met while reading a batch; models do not see it."""

    tokens: int = 0
    """Tokens in the batch's texts."""
    cut_tokens: int = 0
    """Tokens cut because they exceed the source's max_tokens."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Unusable samples: reason -> count."""
    unusable: tuple[dict[str, Any], ...] = ()
    """The same samples, except those on the skip list, with source, shard, key, offset, reason, detail and
    epoch.
    """


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one kind: tensors by name, and integers that the host knows without a device sync.

    The collator provides the tensors in this table; corruptions and tasks document what they add. Row indices
    come from the loader, so nothing in a step waits for the device.

    Shapes:
        pixel_values    [b c H W]  uint8 in [0, 255]; the image encoder normalises
        input_ids       [T]        int64, packed, each text with its special tokens
        cu_seqlens      [b+1]      int32 over the text
        identities      [b]        int64, if the plan has them: what the images show
        sample_seeds    [b]        int64, if the plan has them: a sample's in this epoch, as in the loader
        matched_rows    [k]        int64, samples with their own caption; only for pairs
        masked_samples  [m]        int64, the masked samples, unless all are; then the tensors of corruptions
                                   cover only these samples
        masked_cu_seqlens  [m+1]   int32 over the text of those samples
        matching_input_ids, matching_cu_seqlens  a second text of each sample, which may be another sample's,
                                   if the plan keeps it apart from the sample's own
        region_features    [O y]   float16 or float32, packed, each sample's first region the whole image
        region_boxes       [O 4]   float32, x1 y1 x2 y2 as shares of width and height
        region_classes     [O z]   float16 or float32, a detector's probabilities, if the plan wants them
        region_cu_seqlens  [b+1]   int32 over the regions
        target_labels      [O]     int64, packed labels of the samples, such as the classes of their objects
        target_attributes  [O w]   int64, what is said of each object besides, -1 for nothing
        target_boxes       [O 4]   float32, the boxes of these objects, if the plan wants them
        target_scores      [O]     float32, how right each label is
        target_cu_seqlens  [b+1]   int32 over the labels
    Numbers:
        max_seqlen, masked_max_seqlen, matching_max_seqlen  the longest text, the longest among the
            masked samples, and the longest second text
        region_max_seqlen, joint_max_seqlen, matching_joint_max_seqlen  the most regions of a sample, and the
            longest sequence of a sample's regions and its text, or its second text
        target_max_seqlen  the most labels of a sample

    With training.pad_to_multiple_of, packed texts and lists of rows are padded at their ends
    (flava_ds/data/padding.py): `numbers` has the length without padding of each, by its name, and
        padding_ends, masked_padding_ends  [p]  int32, ends of the sequences of padding behind the texts
    """

    kind: str
    """The step's kind, which selects the objectives that read the batch. A family defines its kinds."""
    source: str
    size: int
    keys: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, int] = field(default_factory=dict)
    read: ReadReport = field(default_factory=ReadReport)
    step: int = 0
    """The optimizer update that the batch is part of, for what follows a schedule; the trainer sets it."""

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.tensors[name]
        except KeyError:
            held = ", ".join(self.tensors)
            raise KeyError(f"no {name} in this {self.kind} batch, which holds {held}") from None

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def get(self, name: str) -> Tensor | None:
        """Returns the tensor with this name, or None."""
        return self.tensors.get(name)

    def listed(self, name: str) -> int:
        """Returns how many rows a tensor has without padding."""
        return self.numbers.get(name, self[name].shape[0])

    def rows(self, name: str) -> Tensor:
        """Returns a list of rows whose padding names row 0, so that it can be read: [k]."""
        return self[name].clamp(min=0) if name in self.numbers else self[name]

    def bounds(self) -> Tensor:
        """Returns where the texts, and the sequences of padding behind them, begin and end: [b+p+1] int32."""
        return with_padding(self["cu_seqlens"], self.get("padding_ends"))

    def having(self, **tensors: Tensor) -> Batch:
        """Returns the batch with additional tensors."""
        return replace(self, tensors={**self.tensors, **tensors})

    def to(self, device: torch.device) -> Batch:
        """Returns the batch with every tensor on `device`; copies from pinned memory are asynchronous."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Returns the batch with every tensor in pinned memory; torch's DataLoader calls this."""
        return self.each(Tensor.pin_memory)

    def each(self, change: Callable[[Tensor], Any]) -> Batch:
        """Returns the batch with `change` applied to every tensor."""
        return replace(self, tensors={name: change(tensor) for name, tensor in self.tensors.items()})


def with_padding(cu_seqlens: Tensor, padding_ends: Tensor | None) -> Tensor:
    """Appends the ends of sequences of padding, if any, to the bounds of packed sequences."""
    return cu_seqlens if padding_ends is None else torch.cat([cu_seqlens, padding_ends])
