"""Batch contents for UniT: what a task's samples have, and their labels."""

from __future__ import annotations

from flava_ds.config import Config, SourceConfig
from flava_ds.data.plan import BatchPlan, TargetsPlan
from flava_ds.families.unit.config import UnitConfig
from flava_ds.objectives.next_sentence import LinePairs, Segments


def plan(config: Config, source: SourceConfig) -> BatchPlan:
    """Plans the batches of `source`. The two lines of a text are its segments."""
    model = UnitConfig.of(config)
    tokenizer = None if source.kind == "image" else model.load_tokenizer(config)
    return BatchPlan(
        kind=source.step_kind,
        views={} if source.kind == "text" else {"pixel_values": model.image.image_size},
        tokenizer=tokenizer,
        max_tokens=0 if tokenizer is None else source.max_tokens,
        composer=LinePairs(tokenizer) if tokenizer is not None and source.kind == "text" else None,
        corruptions=(Segments(tokenizer.sep_id),) if tokenizer is not None and source.kind == "text" else (),
        targets=TargetsPlan.of(config, source),
        sample_seeds=model.drops,
    )
