"""Which patches of the large crops the student does not see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.objectives.masked_image import MaskedImageConfig, mask_blocks

if TYPE_CHECKING:
    from flava_ds.objectives.dino import DinoConfig

_STREAM = 17
VIEWS = 2


@dataclass(frozen=True)
class CropMasks:
    """Masks blocks of patches in some of the large crops. Adds

    Shapes:
        crop_mask         [b 2 n]  bool
        crop_mask_rows    [m]      int64, flat indices into [b 2 n] of the masked patches
        crop_mask_shares  [m]      float32, one over the masked patches of the same crop

    Source: iBOT (Zhou et al. 2021), section 3.3: block-wise, on a share of the crops.
    """

    grid: int
    config: DinoConfig

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        own, patches = self.config, self.grid**2
        draws = uniforms(draft.seeds, 2 * VIEWS, stream=_STREAM).reshape(-1, VIEWS, 2)
        shares = own.masked_least + (own.masked_most - own.masked_least) * draws[..., 1]
        limits = np.where(draws[..., 0] < own.masked_crops, np.rint(shares * patches), 0).astype(np.int64)
        blocks = MaskedImageConfig(min_patches_per_block=own.min_patches_per_block)
        # a view's blocks have the seed's own stream, shifted, so that the two views differ
        masks = [
            mask_blocks(draft.seeds ^ np.uint64(view << 63), self.grid, blocks, limits[:, view])
            for view in range(VIEWS)
        ]
        mask = np.stack(masks, axis=1)
        counts = np.broadcast_to(mask.sum(-1, keepdims=True), mask.shape)
        return {
            "crop_mask": mask,
            "crop_mask_rows": np.flatnonzero(mask),
            "crop_mask_shares": (1 / counts[mask]).astype(np.float32),
        }

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 13 * VIEWS * self.grid**2
