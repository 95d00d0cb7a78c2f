"""Batch contents for ALIGN: pairs, and which blocks each image skips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flava_ds.config import Config, SourceConfig
from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.families.align.config import AlignConfig, EfficientNetConfig
from flava_ds.layers.efficientnet import STAGES, scaled_blocks

_PATH_STREAM = 17


@dataclass(frozen=True)
class BlockPaths:
    """Draws stochastic depth from the samples' seeds, for the training model to read. Adds

    Shapes:
        block_paths  [b blocks]  float32, 0 where a block adds nothing, else 1 / (1 - its probability)
    """

    blocks: int
    drop_path: float

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        kept = 1 - self.drop_path * np.arange(self.blocks) / self.blocks
        draws = uniforms(draft.seeds, self.blocks, stream=_PATH_STREAM)
        return {"block_paths": np.where(draws < kept, 1 / kept, 0.0).astype(np.float32)}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 4 * self.blocks


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans batches of one image and one text per sample, without masks."""
    model = AlignConfig.of(config)
    return BatchPlan(
        kind=source.kind,
        views={"pixel_values": model.image.image_size},
        tokenizer=model.load_tokenizer(config),
        max_tokens=source.max_tokens,
        sample_seeds=model.text.hidden_dropout > 0,
        corruptions=block_paths(model.image),
    )


def block_paths(image: EfficientNetConfig) -> tuple[BlockPaths, ...]:
    """Returns the draws of stochastic depth, if there is any."""
    blocks = sum(scaled_blocks(stage.blocks, image.depth) for stage in STAGES)
    return (BlockPaths(blocks, image.drop_path),) if image.drop_path else ()
