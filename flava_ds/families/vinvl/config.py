"""VinVL's configuration, Oscar+: one BERT over a caption, tags of regions, and the regions.

Source: Zhang et al. 2021, "VinVL: Revisiting Visual Representations in Vision-Language Models"; Li et al.
2020, "Oscar: Object-Semantics Aligned Pre-training for Vision-Language Tasks"; their code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flava_ds.families.single_stream.config import Reading, SingleStreamConfig


@dataclass(frozen=True, kw_only=True)
class VinvlConfig(SingleStreamConfig, type="vinvl"):
    """A BERT whose regions are a linear map of features with boxes, normalised.

    Published is an image.num_classes of 1,594: 111,062,016 parameters, 111,686,973 with the heads of both
    objectives.
    """

    readings: ClassVar[Mapping[str, Reading]] = {"multimodal_masked": Reading(ids="input_ids_masked")}
    views: ClassVar[tuple[str, ...]] = tuple(readings)
    matching_view: ClassVar[str] = "multimodal_masked"
    provides: ClassVar[frozenset[str]] = frozenset({"word_table", "pooled", "tags"})
    reads_tags: ClassVar[bool] = True
    network: ClassVar[str] = "flava_ds.families.vinvl.model:Vinvl"
