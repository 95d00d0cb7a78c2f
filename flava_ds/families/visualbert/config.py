"""VisualBERT's configuration: one BERT over two captions of an image and its regions.

Source: Li et al. 2019, "VisualBERT: A Simple and Performant Baseline for Vision and Language", and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flava_ds.families.single_stream.config import Reading, SingleStreamConfig


@dataclass(frozen=True, kw_only=True)
class VisualBertConfig(SingleStreamConfig, type="visualbert"):
    """A BERT whose regions are their features, mapped, with types and a position of their own.

    The defaults are published: 112,074,812 parameters with the heads of both objectives.
    """

    layouts: ClassVar[str | None] = "flava_ds.families.visualbert.hf"
    model_type: ClassVar[str | None] = "visual_bert"
    readings: ClassVar[Mapping[str, Reading]] = {"multimodal_masked": Reading(ids="input_ids_masked")}
    views: ClassVar[tuple[str, ...]] = tuple(readings)
    matching_view: ClassVar[str] = "multimodal_masked"
    provides: ClassVar[frozenset[str]] = frozenset({"word_table", "pooled", "caption_pairs"})
    network: ClassVar[str] = "flava_ds.families.visualbert.model:VisualBert"
