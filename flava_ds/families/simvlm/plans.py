"""Batch contents for SimVLM: pairs and texts, each cut into a prefix and the rest."""

from __future__ import annotations

from flava_ds.config import Config, SourceConfig
from flava_ds.config.objectives import corruptions_of
from flava_ds.data.plan import BatchPlan
from flava_ds.families.simvlm.config import SimvlmConfig


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans the batches of `source`; those of texts have no images."""
    model = SimvlmConfig.of(config)
    return BatchPlan(
        kind=source.kind,
        views={"pixel_values": model.image.image_size} if source.kind == "pair" else {},
        tokenizer=model.load_tokenizer(config),
        max_tokens=source.max_tokens,
        corruptions=tuple(dict.fromkeys(corruptions_of(config, source))),
    )
