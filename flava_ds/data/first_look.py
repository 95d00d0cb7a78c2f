"""What can be told of sources before the first step: samples for a batch, captions under the key, members
that the model can read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flava_ds.config import Config
from flava_ds.config.objectives import in_use
from flava_ds.config.plain_files import loads
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.samples import tags_of
from flava_ds.errors import DataError
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault

LOOKED_AT = 32
"""Samples that are looked at."""


def look_over(config: Config, sources: Mapping[str, Any]) -> None:
    """Looks at opened sources by name.

    Raises: DataError for a source with fewer samples than a step draws, or whose first samples have no
    caption, or no regions and labels that can be used, or more of these than it may have; for a reader of
    the user's own whose state no checkpoint holds.
    """
    for name, source in sources.items():
        size = config.global_batch_size(name)
        if source.length is not None and source.length < size:
            own = config.data.sources[name]
            place, more = (
                (f"in '{own.shards}'", "shards") if own.reader is None else ("of its reader", "samples")
            )
            raise DataError(
                f"source '{name}': {source.length} usable samples {place} are fewer than "
                f"the {size} of one step over all ranks; add {more}, or set "
                f"--data.sources.{name}.global-batch-size to at most {source.length}"
            )
        if config.data.sources[name].reader is not None:
            _look_at_state(name, source)
        if isinstance(source, IndexedShards) and source.source.caption_key and source.kind != "image":
            _look_for_captions(source, source.source.caption_key)
        if isinstance(source, IndexedShards):
            _look_for_members(source)


def _look_at_state(name: str, source: Any) -> None:
    """Raises DataError unless JSON, as which checkpoints keep it, gives a source's state back as it was: a
    resume compares both.
    """
    state = source.state()
    try:
        holds = isinstance(state, dict) and loads(json.dumps(state)) == state
    except (TypeError, ValueError):
        holds = False
    if not holds:
        raise DataError(
            f"source '{name}': its reader {type(source).__qualname__} has the state {state!r:.80}, which no "
            "checkpoint holds; return a dict of texts, numbers, lists, dicts and None"
        )


def _look_for_members(source: IndexedShards) -> None:
    """Raises DataError when none of the first samples has regions, labels, identities as the run needs, or
    tags that an objective contrasts, or if most of them have more regions or labels than they may.
    """
    own, used = source.source, in_use(source.config.objectives)
    of_tags = next((name for name, each in used.items() if each.reads_tags and own.regions_key), None)
    keys = {"regions": own.regions_key, "targets": own.targets_key, "metadata": own.identity_key}
    names = tuple(name for name, key in keys.items() if key)
    looked, good, untagged = range(min(LOOKED_AT, len(source)) if names else 0), 0, False
    lost: list[SampleFault] = []
    for number in looked:
        try:
            sample = source.decode(source.read(number, names), number, 0, draw=0.0)
        except SampleFault as caught:
            lost.append(caught)
            continue
        good += of_tags is None or bool(tags_of(sample))
        untagged = True
    if not good and untagged:
        raise DataError(
            f"source '{source.name}': objectives.{of_tags} contrasts captions with tags of regions, and none "
            f"of the first {len(looked)} samples has any; store them as the metadata `tags` "
            f"of KEY.{own.regions_key}, or leave that objective out"
        )
    limited = [fault for fault in lost if fault.reason in faults.LIMITS]
    if 2 * len(limited) > len(looked) and own.max_skipped_share < 0.5:
        raise DataError(
            f"source '{source.name}': {len(limited)} of the first {len(looked)} samples cannot be used: "
            f"{limited[-1]}; {faults.remedy(source.name, [fault.reason for fault in limited])}"
        )
    if lost and not good:
        raise DataError(
            f"source '{source.name}': none of the first {len(looked)} samples can be used: "
            f"{lost[-1]}; give the shards that this model reads, or fit the model to them"
        )


def _look_for_captions(source: IndexedShards, key: str) -> None:
    """Raises DataError when none of the first samples has a caption in its .json's field."""
    fields: dict[str, None] = {}
    for number in range(min(LOOKED_AT, len(source))):
        try:
            found = source.read(number, ("caption",))
            source.decode(found, number, 0, draw=0.0)
        except SampleFault as fault:
            if fault.reason == faults.MISSING_CAPTION:
                fields |= dict.fromkeys(_fields(found["caption"]))
            continue
        return
    if fields:
        option = f"--data.sources.{source.name}.caption-key"
        raise DataError(
            f"source '{source.name}': caption_key '{key}' holds no caption in any of the first "
            f"{min(LOOKED_AT, len(source))} samples, whose .json has {', '.join(fields)}; set {option} to "
            f"one of these, or {option} None (null in a file) for the .txt"
        )


def _fields(record: bytes) -> list[str]:
    """Returns the names in a sample's .json."""
    try:
        return list(loads(record))
    except (ValueError, TypeError):
        return []
