"""Single streams' capabilities for evaluation: match log odds, masked predictions, states to fine-tune.

Images go through the frozen detector of model.detector; texts alone need none. Shapes follow
flava_ds/evaluation/protocols.py, which this module does not import, since protocols are structural. Only
states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from flava_ds.families.bert.capabilities import BertTexts, types_of_texts
from flava_ds.families.offers import PairMatcher, WordReading, for_pairs
from flava_ds.families.single_stream.config import single_stream_of
from flava_ds.families.single_stream.model import SingleStream
from flava_ds.layers.regions import JointLayout, PackedImages
from flava_ds.layers.transformer import Encoded
from flava_ds.layers.words import pack
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.next_sentence import NextSentence

if TYPE_CHECKING:
    from flava_ds.training.task import Task

LACKS = dict.fromkeys(
    ("ImageFeatures", "Embedder", "Tokens"),
    "such a model reads the regions of an image together with a text, never alone",
)
"""Capabilities that single streams lack: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a model with its objectives, and what it lacks: protocol -> reason."""
    model = single_stream_of(config)
    sep_id = model.load_tokenizer(config).sep_id
    texts = BertTexts(module.model, sep_id)
    if model.detector is None:
        why = "it reads regions of images and has no detector to find them; give model.detector"
        return (texts,), LACKS | dict.fromkeys(("Matcher", "Scorer", "PairStates"), why)
    from flava_ds.regions.detector import load_detector

    part = PairPart(module.model, load_detector(model.detector), sep_id)
    parts, lacks = for_pairs(module, config, ImageTextMatchingConfig, part.pooled, part.read)
    for name, objective in module.objectives.items():
        if isinstance(objective, NextSentence):
            told = config.objectives[name].random_probability
            parts.append(PairMatcher(part.pooled_second, Flipped(objective.classifier), told))
            lacks.pop("Matcher", None)
    return (texts, PairStates(part), *parts), LACKS | lacks


class Flipped(nn.Module):
    """A classifier whose first class means that image and text match, with the classes in ITM's order."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pooled: Tensor) -> Tensor:
        return self.classifier(pooled).flip(-1)


class PairPart:
    """Runs a model on images and texts, without a training batch."""

    def __init__(self, model: SingleStream, detector: Any, sep_id: int) -> None:
        """`detector` finds regions in images [b c H W] uint8 (flava_ds/regions)."""
        self.model, self.detector, self.sep_id = model, detector, sep_id

    def encode(
        self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]], *, first_only: bool = False
    ) -> list[tuple[Encoded, JointLayout]]:
        """Encodes images with one text each, for each of several pairings; regions are found once.

        With `first_only`, the last block finishes only the texts' CLS.

        Shapes:
            pixels    [b c H W]  uint8
            pairings  each b arrays of ids
        """
        device, found = self.model.word_table().device, []
        regions = self.detector(pixels.to(device))
        images = PackedImages(regions.features, regions.boxes, regions.cu_seqlens, regions.max_seqlen)
        for texts in pairings:
            packed = pack(texts, device)
            longest = packed.max_seqlen + images.max_seqlen
            layout = JointLayout(packed.cu_seqlens, images.cu_seqlens, longest)
            types = types_of_texts(texts, self.sep_id).to(device)
            keep = layout.text_starts if first_only else None
            found.append((self.model.encode_images(packed, images, layout, types, keep), layout))
        return found

    def pooled(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Returns the pooled CLS of the texts: one [b d] for each pairing."""
        encoded = self.encode(pixels, pairings, first_only=True)
        return [self.model.pooled(own.rows(layout.text_starts)) for own, layout in encoded]

    def pooled_second(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Returns the pooled CLS of texts whose first segment is empty: sentence-image prediction asks about
        the second.
        """
        second = [[np.concatenate([ids[:1], ids[-1:], ids[1:]]) for ids in texts] for texts in pairings]
        return self.pooled(pixels, second)

    def read(self, head: nn.Module, pixels: Tensor, texts: Sequence[np.ndarray]) -> WordReading:
        """Encodes images with masked texts, for `head` to predict the words."""
        [(encoded, layout)] = self.encode(pixels, [texts])
        return WordReading(encoded, self.model, head, layout.text_rows)


class PairStates:
    """Gives copies of the model to fine-tune."""

    def __init__(self, part: PairPart) -> None:
        self.part = part

    def pair_states(self, scale: float = 1.0) -> TunablePairs:
        """Returns a copy for images `scale` times as large."""
        return TunablePairs(self.part, round(scale * self.part.model.config.image_size))


class TunablePairs(nn.Module):
    """The pooled CLS of each text with its image, with a graph; the detector stays as it is."""

    def __init__(self, part: PairPart, image_size: int) -> None:
        super().__init__()
        self.width, self.image_size = part.model.config.text.hidden_size, image_size
        self.model: SingleStream = copy.deepcopy(part.model).requires_grad_(True)
        self.given = (part.detector, part.sep_id)

    def forward(self, texts: Sequence[np.ndarray], pixels: Tensor | None = None) -> Tensor:
        assert pixels is not None  # these are pairs
        return PairPart(self.model, *self.given).pooled(pixels, [texts])[0]
