"""UNITER's configuration: one BERT over words and regions, and three passes a step.

Source: Chen et al. 2020, "UNITER: UNiversal Image-TExt Representation Learning", and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flava_ds.families.single_stream.config import Reading, SingleStreamConfig


@dataclass(frozen=True, kw_only=True)
class UniterConfig(SingleStreamConfig, type="uniter"):
    """A BERT whose regions are features and boxes, each mapped and normalised, and added.

    Published are cased words, a text.vocab_size of 28,996: 112,938,887 parameters with its four heads.
    """

    readings: ClassVar[Mapping[str, Reading]] = {
        "multimodal_masked": Reading(ids="input_ids_masked"),
        "regions_masked": Reading(ids="input_ids", hides_regions=True),
        "multimodal": Reading(ids="matching_input_ids", prefix="matching_"),
    }
    views: ClassVar[tuple[str, ...]] = tuple(readings)
    matching_view: ClassVar[str] = "multimodal"
    regions_view: ClassVar[str] = "regions_masked"
    provides: ClassVar[frozenset[str]] = frozenset(
        {"word_table", "pooled", "region_rows", "region_table", "alignment_rows"}
    )
    network: ClassVar[str] = "flava_ds.families.uniter.model:Uniter"
