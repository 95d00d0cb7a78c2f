"""Single streams' capabilities for evaluation: match log odds, masked predictions, states to fine-tune.

Images go through the frozen detector of model.detector; texts alone need none. Shapes follow
flava_ds/evaluation/protocols.py. Only states to fine-tune keep a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.families.bert.capabilities import BertTexts, types_of_texts
from flava_ds.families.offers import (
    NO_DETECTOR,
    STORED_ALONE,
    FoundBefore,
    PairMatcher,
    Tunable,
    WordReading,
    detector_of,
    for_pairs,
    images_of,
    tunable_pairs,
)
from flava_ds.families.single_stream.config import SingleStreamConfig
from flava_ds.families.single_stream.model import SingleStream
from flava_ds.layers.regions import JointLayout
from flava_ds.layers.transformer import Encoded
from flava_ds.layers.words import pack
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.next_sentence import NextSentence
from flava_ds.objectives.tag_contrast import MATCH, WRONG_CAPTION, TagContrast
from flava_ds.training.task import Task

LACKS = dict.fromkeys(
    ("ImageFeatures", "Embedder", "ImageStates"),
    "such a model reads the regions of an image together with a text, never alone",
)
"""Capabilities that single streams lack: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a model with its objectives, and what it lacks: protocol -> reason."""
    model = SingleStreamConfig.of(config)
    sep_id = model.load_tokenizer(config).sep_id
    texts = BertTexts(module.model, sep_id)
    if model.detector is None:
        return (texts,), LACKS | NO_DETECTOR
    detector = detector_of(model, module.model.word_table().device)
    trained = [source.max_tokens for source in config.data.sources.values() if source.kind == "pair"]
    most = min([model.max_tokens, *trained[:1]])
    part = PairPart(module.model, detector, model.load_tokenizer(config), most)
    if isinstance(detector, FoundBefore):
        return (texts, part), LACKS | STORED_ALONE
    parts, lacks = for_pairs(module, config, ImageTextMatchingConfig, part.pooled, part.read)
    for name, objective in module.objectives.items():
        if isinstance(objective, NextSentence):
            told = config.objectives[name].random_probability
            parts.append(PairMatcher(part.pooled_second, Chosen(objective.classifier, 1, 0), told))
            lacks.pop("Matcher", None)
        elif isinstance(objective, TagContrast):
            told = config.objectives[name]
            wrong = told.wrong_caption_probability / max(1 - told.wrong_tags_probability, 1e-9)
            chosen = Chosen(objective.classifier, WRONG_CAPTION, MATCH)
            parts.append(PairMatcher(part.pooled, chosen, wrong))
            lacks.pop("Matcher", None)
    return (texts, part, *parts), LACKS | lacks


class Chosen(nn.Module):
    """Two of a classifier's classes in ITM's order: the one of a wrong caption, and the one of a match."""

    def __init__(self, classifier: nn.Module, mismatch: int, match: int) -> None:
        super().__init__()
        self.classifier, self.columns = classifier, [mismatch, match]

    def forward(self, pooled: Tensor) -> Tensor:
        return self.classifier(pooled)[:, self.columns]


class PairPart:
    """Runs a model on images and texts, without a training batch, and gives copies of it to fine-tune."""

    def __init__(
        self, model: SingleStream, detector: Any, tokenizer: WordPieceTokenizer, most_tokens: int
    ) -> None:
        """`detector` finds regions in images [b c H W] uint8, and their tags (flava_ds/regions);
        `most_tokens` is the longest text with tags of its training.
        """
        self.model, self.detector, self.tokenizer = model, detector, tokenizer
        self.most_tokens = most_tokens

    def encode(
        self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]], *, first_only: bool = False
    ) -> list[tuple[Encoded, JointLayout]]:
        """Encodes images with one text each, for each of several pairings; regions are found once.

        The images' tags follow the texts if the family reads them. With `first_only`, the last block finishes
        only the texts' CLS.

        Shapes:
            pixels    [b c H W]  uint8
            pairings  each b arrays of ids
        """
        device, found = self.model.word_table().device, []
        regions = self.detector(pixels)
        images = images_of(regions, device)
        tags = self.detector.tags(regions) if self.model.config.reads_tags else []
        for texts in pairings:
            texts = self.tagged(texts, tags) if tags else texts
            packed = pack(texts, device)
            layout = self.model.joint(packed, images)
            types = types_of_texts(texts, self.tokenizer.sep_id).to(device)
            keep = layout.text_starts if first_only else None
            found.append((self.model.encode_images(packed, images, layout, types, keep), layout))
        return found

    def tagged(self, texts: Sequence[np.ndarray], tags: Sequence[str]) -> list[np.ndarray]:
        """Returns texts with the tags of their images as second segments, where there are any. Tags beyond
        the longest text of its training are left out, the last ones first.
        """
        most = self.most_tokens
        words = [own[1:-1] for own in self.tokenizer.encode_batch(tags, most)]
        room = [max(0, most - len(text) - 1) for text in texts]
        return [
            np.concatenate([text, own[:left], text[-1:]]) if len(own[:left]) else text
            for text, own, left in zip(texts, words, room, strict=True)
        ]

    def pooled(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Returns the pooled CLS of the texts: one [b d] for each pairing."""
        encoded = self.encode(pixels, pairings, first_only=True)
        return [self.model.pooled(own.rows(layout.text_starts)) for own, layout in encoded]

    def pooled_second(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Returns the pooled CLS of texts whose first segment is empty: sentence-image prediction asks about
        the second, which is cut to what the model reads.
        """
        words = self.model.config.max_tokens - 3
        second = [
            [np.concatenate([ids[:1], ids[-1:], ids[1:-1][:words], ids[-1:]]) for ids in texts]
            for texts in pairings
        ]
        return self.pooled(pixels, second)

    def read(self, head: nn.Module, pixels: Tensor, texts: Sequence[np.ndarray]) -> WordReading:
        """Encodes images with masked texts, for `head` to predict the words."""
        [(encoded, layout)] = self.encode(pixels, [texts])
        given = pack(texts, layout.text_cu_seqlens.device).cu_seqlens
        # of each text's tokens the given ones come first, before its tags
        within = JointLayout(given, layout.text_cu_seqlens - given, layout.max_seqlen)
        return WordReading(encoded, self.model, head, lambda rows: layout.text_rows(within.text_rows(rows)))

    def pair_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy for images `scale` times as large."""
        return tunable_pairs(self, scale)
