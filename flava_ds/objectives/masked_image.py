"""Predicts codebook indices of masked patches: MIM on images, MMM-image on pairs (FLAVA, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from flava_ds.batch import IGNORE_INDEX, PADDING_ROW, Batch
from flava_ds.config.bounds import Above, AtLeast, AtMost
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.errors import ConfigError
from flava_ds.layers.heads import MaskedPredictionHead
from flava_ds.objectives.base import Loss, Objective

_STREAM = 11


@dataclass(frozen=True, kw_only=True)
class MaskedImageConfig(ObjectiveConfig, type="mim"):
    """Masked image modelling (MIM): BEiT's block-wise masking; the codebook provides the targets."""

    masking: Literal["blocks", "any_share"] = "blocks"
    """'blocks' as published; 'any_share' masks between one and all patches of an image, anywhere, as drawing
    one step by step needs (MaskGIT). The other settings are those of blocks."""
    num_masked_patches: Annotated[int, AtLeast(1), AtMost(2**20)] = 75
    """Upper limit per image (75 of 196 in the published code)."""
    min_patches_per_block: Annotated[int, AtLeast(1), AtMost(2**20)] = 16
    """Patches in the smallest block."""
    min_aspect_ratio: Annotated[float, Above(0), AtMost(1)] = 0.3
    """Smallest height / width of a block; the largest is its inverse."""
    attempts_per_block: Annotated[int, AtLeast(1), AtMost(10_000)] = 10
    """Attempts to place a block, after which the image keeps the blocks that it has."""

    kinds: ClassVar[frozenset[str]] = frozenset({"image"})
    title: ClassVar[str] = "Masked image"
    drawn_once: ClassVar[tuple[str, ...]] = (
        "masking",
        "num_masked_patches",
        "min_patches_per_block",
        "min_aspect_ratio",
        "attempts_per_block",
    )
    predicts_codes: ClassVar[bool] = True
    ignores_padding: ClassVar[bool] = True
    view: ClassVar[str] = "image_masked"

    def classes(self, config: Any) -> int:
        return config.codebook.vocab_size

    def build(self, config: Any) -> MaskedImageModeling:
        shape = config.model.shape_of(self.view)
        head = MaskedPredictionHead(shape.hidden_size, self.classes(config), shape.layer_norm_eps)
        return MaskedImageModeling(self, head)

    def check(self, where: str, config: Any) -> None:
        if self.masking != "blocks":
            return
        if self.min_patches_per_block > self.num_masked_patches:
            raise ConfigError(
                f"{where}: a block of min_patches_per_block {self.min_patches_per_block} does not fit "
                f"into num_masked_patches {self.num_masked_patches}"
            )
        if self.num_masked_patches > config.model.num_patches:
            raise ConfigError(
                f"{where}: num_masked_patches {self.num_masked_patches} is more than the "
                f"{config.model.num_patches} patches of a picture; set --{where}.num-masked-patches to about "
                f"{max(1, round(0.4 * config.model.num_patches))}, four in ten as published, and "
                "min-patches-per-block below it"
            )


@dataclass(frozen=True, kw_only=True)
class MultimodalMaskedImageConfig(MaskedImageConfig, type="mmm_image"):
    """Masked image modelling on pairs, read from the multimodal encoder (MMM-image)."""

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "MMM, image"
    view: ClassVar[str] = "multimodal_masked"


@dataclass(frozen=True)
class PatchMask:
    """Masks patches by blocks. Adds

    Shapes:
        bool_masked_pos  [m n]  bool, patches replaced by the mask token
        mim_rows         [k]    int64, flat indices into [m n] of the patches to predict: masked ones of
                                matched samples
    """

    grid: int
    config: MaskedImageConfig

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        mask = mask_patches(draft.seeds, self.grid, self.config)
        return {"bool_masked_pos": mask, "mim_rows": np.flatnonzero(mask & draft.matched[:, None])}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 9 * self.grid**2


@dataclass(frozen=True)
class CodebookTargets:
    """Passes on the source of the labels: stored codes, or the picture at the codebook's size. Adds one of

    Shapes:
        image_codes            [m n]      int64 codebook indices
        codebook_pixel_values  [m c H W]  uint8, the model's crop at the codebook's size
    """

    view: str | None
    """The plan's view to pass on; None if the data includes codes."""

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray | Tensor]:
        if self.view is not None:
            return {"codebook_pixel_values": draft.views[self.view]}
        assert draft.codes is not None  # without stored codes, the plan names a view
        return {"image_codes": draft.codes}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 8 * plan.stored_codes if self.view is None else 3 * plan.views[self.view] ** 2


class MaskedImageModeling(Objective):
    """Cross-entropy over the masked patches of matched samples, read from the config's view."""

    def __init__(self, config: MaskedImageConfig, head: MaskedPredictionHead):
        super().__init__(config.weight)
        self.kinds, self.needs, self.view = config.kinds, frozenset({config.view}), config.view
        self.head = head

    def count(self, batch: Batch) -> int:
        return batch.listed("mim_rows")

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {self.view: model.patch_rows(self.view, batch.rows("mim_rows"), batch)}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        codes = batch["image_codes"].flatten().index_select(0, batch.rows("mim_rows"))
        if "mim_rows" in batch.numbers:
            codes = codes.masked_fill(batch["mim_rows"] == PADDING_ROW, IGNORE_INDEX)
        loss, correct = self.head.loss(hidden[self.view], codes)
        return Loss(loss, self.count(batch), {"correct": correct})


def mask_patches(seeds: np.ndarray, grid: int, config: MaskedImageConfig) -> np.ndarray:
    """Masks patches the configured way: see mask_blocks and mask_any_share.

    Shapes:
        seeds  [b]            uint64
        out    [b grid*grid]  bool, True where the patch is replaced
    """
    return (
        mask_blocks(seeds, grid, config) if config.masking == "blocks" else mask_any_share(seeds, grid * grid)
    )


def mask_any_share(seeds: np.ndarray, patches: int) -> np.ndarray:
    """Masks the share cos(pi / 2 * u) of an image's patches, u uniform, but at least one: [b] -> [b patches].

    Source: MaskGIT (Chang et al. 2022), the cosine schedule, of which training sees every moment.
    """
    draws = uniforms(seeds, 1 + patches, stream=_STREAM)
    masked = np.ceil(patches * np.cos(np.pi / 2 * draws[:, :1]))
    return draws[:, 1:].argsort(1).argsort(1) < masked


def mask_blocks(
    seeds: np.ndarray, grid: int, config: MaskedImageConfig, limit: np.ndarray | None = None
) -> np.ndarray:
    """Masks rectangular blocks of patches until the limit, or until `attempts_per_block` attempts fail.

    A block's area is uniform between min_patches_per_block and the number of patches left to mask; its aspect
    ratio is log-uniform. A block is used if it covers something new and stays within the limit. All samples
    advance together, one attempt per turn.

    Shapes:
        seeds  [b]            uint64
        limit  [b]            int64, patches to mask at most; None takes config.num_masked_patches
        out    [b grid*grid]  bool, True where the patch is replaced
    Source: BEiT (Bao et al. 2021), algorithm 1, with the numbers of its published code.
    """
    mask = np.zeros((len(seeds), grid, grid), dtype=bool)
    masked, failed = np.zeros(len(seeds), dtype=np.int64), np.zeros(len(seeds), dtype=np.int64)
    log_ratio = np.log(config.min_aspect_ratio)
    lines = np.arange(grid)
    limit = np.full(len(seeds), config.num_masked_patches) if limit is None else limit
    active, turn = np.flatnonzero(limit > 0), 0
    while active.size:
        area, ratio, row, column = uniforms(seeds[active], 4, stream=_STREAM, start=4 * turn).T
        left = limit[active] - masked[active]
        area = config.min_patches_per_block + area * (left - config.min_patches_per_block)
        ratio = np.exp(log_ratio * (1 - 2 * ratio))
        height = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        width = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        top = (row * (grid - height + 1)).astype(np.int64)
        start = (column * (grid - width + 1)).astype(np.int64)
        rows = (lines >= top[:, None]) & (lines < (top + height)[:, None])
        columns = (lines >= start[:, None]) & (lines < (start + width)[:, None])
        merged = mask[active] | (rows[:, :, None] & columns[:, None, :])
        gain = merged.sum((1, 2)) - masked[active]
        taken = (height < grid) & (width < grid) & (gain > 0) & (gain <= left)
        mask[active[taken]] = merged[taken]
        masked[active] += np.where(taken, gain, 0)
        failed[active] = np.where(taken, 0, failed[active] + 1)
        active = active[(masked[active] < limit[active]) & (failed[active] < config.attempts_per_block)]
        turn += 1
    return mask.reshape(len(seeds), grid * grid)
