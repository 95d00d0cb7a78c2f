"""What LXMERT and ViLBERT offer evaluations: match log odds, masked predictions, states to fine-tune.

Images go through the frozen detector of model.detector. Shapes follow flava_ds/evaluation/protocols.py. Only
states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from flava_ds.batch import Packed
from flava_ds.families.offers import (
    NO_DETECTOR,
    STORED_ALONE,
    FoundBefore,
    Tunable,
    WordReading,
    detector_of,
    for_pairs,
    images_of,
    tunable_pairs,
)
from flava_ds.families.two_streams.config import TEXT_VIEW, TwoStreamConfig
from flava_ds.families.two_streams.model import TwoStreamModel
from flava_ds.layers.regions import PackedImages
from flava_ds.layers.words import pack
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.training.task import Task

OF_REGIONS = re.compile(
    r"^region_|^streams\.regions\.|^streams\.rounds\.\d+\.(exchange\.)?regions\."
    r"|\.exchange\.\w+\.attention\.(query\.|key_value\.|output\.weight)"
)
"""Names of parameters that texts alone do not read, or that have no effect on them."""
LACKS = dict.fromkeys(
    ("ImageFeatures", "TextFeatures", "Embedder", "ImageStates"),
    "its streams of words and regions read each other, and neither is trained alone",
)
"""Capabilities that both families lack: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a model with its objectives, and what it lacks: protocol -> reason."""
    model = TwoStreamConfig.of(config)
    texts = TextPart(module.model)
    if model.detector is None:
        return (texts,), LACKS | NO_DETECTOR
    detector = detector_of(model, module.model.word_table().device)
    part = PairPart(module.model, detector)
    if isinstance(detector, FoundBefore):
        return (texts, part), LACKS | STORED_ALONE
    parts, lacks = for_pairs(module, config, ImageTextMatchingConfig, part.pooled, part.read)
    return (texts, part, *parts), LACKS | lacks


class TextPart:
    """Gives copies to fine-tune on texts alone, which attend to no region."""

    def __init__(self, model: TwoStreamModel) -> None:
        self.model = model

    def text_states(self) -> Tunable:
        """Returns a copy of the stream of words, for the pooled CLS of each text."""
        model: TwoStreamModel = copy.deepcopy(self.model)
        read = model.parameters_of(TEXT_VIEW, read_directly=True) | model.pooler_parameters()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in read and not OF_REGIONS.search(name))
        return Tunable(text_states, width=model.config.pooled_size, model=model)


def text_states(model: TwoStreamModel, texts: Sequence[np.ndarray], _: None = None) -> Tensor:
    """Returns the pooled CLS of each text. Attention to an empty stream of regions adds its bias."""
    table = model.word_table()
    packed, size = pack(texts, table.device), model.config.regions.feature_size
    none = PackedImages(table.new_zeros(0, size), table.new_zeros(0, 4), 0 * packed.cu_seqlens, 0)
    reads = {TEXT_VIEW: packed.cu_seqlens[:-1].long()}
    encoded = model.encode_pairs(packed, model.regions_alone(none), reads)
    return model.pooled_text(encoded[TEXT_VIEW].first())


class PairPart:
    """Runs a model on images and texts, without a training batch, and gives copies of it to fine-tune."""

    def __init__(self, model: TwoStreamModel, detector: Any) -> None:
        """`detector` finds regions in images [b c H W] uint8 (flava_ds/regions)."""
        self.model, self.detector = model, detector

    def regions(self, pixels: Tensor) -> Packed:
        """Finds the regions of images and encodes them as far as they do not depend on a text."""
        return self.model.regions_alone(images_of(self.detector(pixels), self.model.word_table().device))

    def pooled(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Returns the pooled vector of images with one text each: one [b d] for each of several pairings.

        Shapes:
            pixels    [b c H W]  uint8
            pairings  each b arrays of ids
        """
        regions, views = self.regions(pixels), self.model.config.pooled_views
        found = []
        for texts in pairings:
            packed = pack(texts, regions.hidden.device)
            firsts = packed.cu_seqlens[:-1].long(), regions.first_rows
            reads = {view: firsts[self.model.config.views.index(view)] for view in views}
            encoded = self.model.encode_pairs(packed, regions, reads)
            found.append(self.model.pooled(*(encoded[view].first() for view in views)))
        return found

    def read(self, head: nn.Module, pixels: Tensor, texts: Sequence[np.ndarray]) -> WordReading:
        """Encodes images with masked texts, for `head` to predict the words."""
        regions = self.regions(pixels)
        encoded = self.model.encode_pairs(pack(texts, regions.hidden.device), regions, {TEXT_VIEW: None})
        return WordReading(encoded[TEXT_VIEW], self.model, head)

    def pair_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy for images `scale` times as large."""
        return tunable_pairs(self, scale)
