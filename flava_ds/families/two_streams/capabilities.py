"""What LXMERT and ViLBERT offer evaluations: match log odds, masked predictions, states to fine-tune.

Images go through the frozen detector of model.detector. Shapes follow flava_ds/evaluation/protocols.py, which
this module does not import, since protocols are structural. Only states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from flava_ds.batch import Packed
from flava_ds.families.offers import WordReading, for_pairs
from flava_ds.families.two_streams.config import TEXT_VIEW, two_streams_of
from flava_ds.families.two_streams.model import TwoStreamModel
from flava_ds.layers.regions import PackedImages
from flava_ds.layers.words import pack
from flava_ds.objectives.itm import ImageTextMatchingConfig

if TYPE_CHECKING:
    from flava_ds.training.task import Task

LACKS = dict.fromkeys(
    ("ImageFeatures", "TextFeatures", "Embedder", "Tokens", "TextStates"),
    "its streams of words and regions read each other, and neither is trained alone",
)
"""Capabilities that both families lack: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a model with its objectives, and what it lacks: protocol -> reason."""
    detector = two_streams_of(config).detector
    if detector is None:
        why = "it reads regions of images and has no detector to find them; give model.detector"
        return (), LACKS | dict.fromkeys(("Matcher", "Scorer", "PairStates"), why)
    from flava_ds.regions.detector import load_detector

    part = PairPart(module.model, load_detector(detector))
    parts, lacks = for_pairs(module, config, ImageTextMatchingConfig, part.pooled, part.read)
    return (PairStates(part), *parts), LACKS | lacks


class PairPart:
    """Runs a model on images and texts, without a training batch."""

    def __init__(self, model: TwoStreamModel, detector: Any) -> None:
        """`detector` finds regions in images [b c H W] uint8 (flava_ds/regions)."""
        self.model, self.detector = model, detector

    def regions(self, pixels: Tensor) -> Packed:
        """Finds the regions of images and encodes them as far as they do not depend on a text."""
        device = self.model.word_table().device
        found = self.detector.to(device)(pixels.to(device))
        return self.model.regions_alone(
            PackedImages(found.features, found.boxes, found.cu_seqlens, found.max_seqlen)
        )

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


class PairStates:
    """Gives copies of the model to fine-tune."""

    def __init__(self, part: PairPart) -> None:
        self.part = part

    def pair_states(self, scale: float = 1.0) -> TunablePairs:
        """Returns a copy for images `scale` times as large."""
        return TunablePairs(self.part, round(scale * self.part.model.config.image_size))


class TunablePairs(nn.Module):
    """The pooled vector of each text with its image, with a graph; the detector stays as it is."""

    def __init__(self, part: PairPart, image_size: int) -> None:
        super().__init__()
        config = part.model.config
        self.width, self.image_size = config.pooled_size, image_size
        self.model: TwoStreamModel = copy.deepcopy(part.model).requires_grad_(False)
        read = self.model.pooler_parameters().union(
            *(self.model.parameters_of(view, read_directly=True) for view in config.pooled_views)
        )
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in read)
        self.detector = (part.detector,)
        """In a tuple, so that it is no part of this module."""

    def forward(self, texts: Sequence[np.ndarray], pixels: Tensor | None = None) -> Tensor:
        assert pixels is not None  # these are pairs
        return PairPart(self.model, *self.detector).pooled(pixels, [texts])[0]
