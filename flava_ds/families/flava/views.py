"""FLAVA's kinds of step, its views, and the positions in its packed sequences."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from flava_ds.batch import Batch, with_padding


class Kind(StrEnum):
    """What one optimizer step trains on."""

    IMAGE = "image"
    TEXT = "text"
    PAIR = "pair"


class View(StrEnum):
    """One encoder's output for one version of the input."""

    IMAGE = "image"
    IMAGE_MASKED = "image_masked"
    TEXT = "text"
    TEXT_MASKED = "text_masked"
    MULTIMODAL = "multimodal"
    MULTIMODAL_MASKED = "multimodal_masked"


MASKED_VIEWS = frozenset({View.IMAGE_MASKED, View.TEXT_MASKED, View.MULTIMODAL_MASKED})
IMAGE_VIEWS = (View.IMAGE, View.IMAGE_MASKED)
TEXT_VIEWS = (View.TEXT, View.TEXT_MASKED)
FUSED_FROM = {
    View.MULTIMODAL: (View.IMAGE, View.TEXT),
    View.MULTIMODAL_MASKED: (View.IMAGE_MASKED, View.TEXT_MASKED),
}
"""The views that each fused view reads."""


@dataclass(frozen=True)
class Side:
    """The inputs of one side's views, clean or masked: all samples of a batch, or the masked share.

    Shapes:
        pixel_values     [m c H W]  or None
        bool_masked_pos  [m n]      or None
        input_ids        [T]        clean; None if only the masked ids of a share were sent
        masked_ids       [T]        or None
        cu_seqlens       [m+1]      or None
        padding_ends     [p]        of the sequences of padding behind the texts, or None
    """

    size: int
    pixel_values: Tensor | None
    bool_masked_pos: Tensor | None
    input_ids: Tensor | None
    masked_ids: Tensor | None
    cu_seqlens: Tensor | None
    max_seqlen: int
    padding_ends: Tensor | None = None

    @property
    def bounds(self) -> Tensor:
        """Bounds of the texts and of the sequences of padding behind them: [m+p+1]."""
        assert self.cu_seqlens is not None  # only sides with text are asked
        return with_padding(self.cu_seqlens, self.padding_ends)


def is_share(batch: Batch) -> bool:
    """Returns True if only a share of the batch's samples is masked."""
    return "masked_samples" in batch


def side_of(batch: Batch, view: str) -> Side:
    """Returns the inputs of `view` in a batch."""
    share = is_share(batch) and view in MASKED_VIEWS
    pixels, size, prefix = batch.get("pixel_values"), batch.size, ""
    if share:
        rows, prefix = batch["masked_samples"], "masked_"
        pixels, size = (None if pixels is None else pixels.index_select(0, rows)), rows.shape[0]
    return Side(
        size=size,
        pixel_values=pixels,
        bool_masked_pos=batch.get("bool_masked_pos"),
        input_ids=None if share else batch.get("input_ids"),
        masked_ids=batch.get("input_ids_masked"),
        cu_seqlens=batch.get(f"{prefix}cu_seqlens"),
        max_seqlen=batch.numbers.get(f"{prefix}max_seqlen", 0),
        padding_ends=batch.get(f"{prefix}padding_ends"),
    )


def image_patch_rows(patches: Tensor, num_patches: int) -> Tensor:
    """Returns the rows in packed image sequences [b*(1+n)] of flat patch indices into [b n]: [k] -> [k]."""
    return patches + patches // num_patches + 1
