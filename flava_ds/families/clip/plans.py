"""Batch contents for CLIP: pairs only."""

from __future__ import annotations

from flava_ds.config import Config, SourceConfig
from flava_ds.data.plan import BatchPlan
from flava_ds.families.clip.config import ClipConfig


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans batches of one image and one text per sample, without masks."""
    model = ClipConfig.of(config)
    return BatchPlan(
        kind=source.kind,
        views={"pixel_values": model.image.image_size},
        tokenizer=model.load_tokenizer(config),
        max_tokens=source.max_tokens,
        pad_to_multiple_of=config.training.pad_to_multiple_of,
    )
