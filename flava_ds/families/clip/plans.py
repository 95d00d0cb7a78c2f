"""Batch contents for CLIP: pairs, and which patches of each image training sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flava_ds.config import Config, SourceConfig
from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.families.clip.config import ClipConfig

_PATCH_STREAM = 18


@dataclass(frozen=True)
class PresentRows:
    """Draws from the samples' seeds which patches of an image the training model sees. Adds

    Shapes:
        present_rows  [b 1+present]  int64, ascending rows of [CLS | patches], CLS first
    """

    patches: int
    present: int

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        order = uniforms(draft.seeds, self.patches, stream=_PATCH_STREAM).argsort(axis=1, kind="stable")
        rows = np.sort(1 + order[:, : self.present], axis=1)
        return {"present_rows": np.concatenate([np.zeros_like(rows[:, :1]), rows], axis=1)}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 8 * (1 + self.present)


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans batches of one image and one text per sample, without masks."""
    model = ClipConfig.of(config)
    image = model.image
    return BatchPlan(
        kind=source.kind,
        views={"pixel_values": image.image_size},
        tokenizer=model.load_tokenizer(config),
        max_tokens=source.max_tokens,
        corruptions=(PresentRows(image.num_patches, image.present_patches),) if image.patch_dropout else (),
        pad_to_multiple_of=config.training.pad_to_multiple_of,
    )
