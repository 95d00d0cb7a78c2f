"""BERT's capabilities for evaluation: vectors, states to fine-tune, and likelihoods of masked tokens.

Shapes follow flava_ds/evaluation/protocols.py. Only states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.data.two_segments import segments
from flava_ds.families.bert.model import Bert
from flava_ds.families.offers import Tunable, WordReading, names_by_type
from flava_ds.layers.heads import MaskedPredictionHead, TiedPredictionHead
from flava_ds.layers.transformer import Encoded
from flava_ds.layers.words import pack
from flava_ds.training.task import Task

LACKS = dict.fromkeys(
    ("ImageFeatures", "Embedder", "Matcher", "ImageStates"), "BERT reads texts only, no images"
)
"""Capabilities that BERT lacks: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a BERT with its objectives, and what it lacks: protocol -> reason."""
    objectives: Any = module.objectives  # their heads differ in type
    sep_id = config.model.load_tokenizer(config).sep_id
    texts = BertTexts(module.model, sep_id)
    if (masked := names_by_type(module, config).get("mlm")) is None:
        return (texts,), {**LACKS, "Scorer": "the run trains no masked objective"}
    return (texts, BertScorer(module.model, sep_id, objectives[masked].head)), dict(LACKS)


def encode(model: Bert, sep_id: int, texts: Sequence[np.ndarray], *, first_only: bool = False) -> Encoded:
    """Encodes b arrays of ids, special tokens included; with `first_only`, only each CLS is finished.

    What follows a text's first [SEP] is its second segment.
    """
    packed = pack(texts, model.word_table().device)
    types = types_of_texts(texts, sep_id).to(packed.ids.device)
    keep = packed.cu_seqlens[:-1].long() if first_only else None
    return model.encode_texts(packed, types, keep)


def types_of_texts(texts: Sequence[np.ndarray], sep_id: int) -> Tensor:
    """Returns the segments of b arrays of ids, 1 after a text's first [SEP]: [T]."""
    numbers, _ = segments(np.concatenate(texts), np.array([*map(len, texts)]), sep_id)
    return torch.from_numpy(np.minimum(numbers, 1))


class BertTexts:
    """One vector per text: the CLS state."""

    def __init__(self, model: Bert, sep_id: int) -> None:
        self.model, self.sep_id = model, sep_id

    @torch.inference_mode()
    def text_features(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Encodes b arrays of ids: -> [b d], in the model's dtype."""
        return encode(self.model, self.sep_id, texts, first_only=True).first()

    def text_states(self) -> Tunable:
        """Returns a copy of the encoder to fine-tune, for the pooled CLS of each text; the model stays
        unchanged.

        Source: Devlin et al. 2019, BERT, section 4.1 and its published code.
        """
        sep_id, width = self.sep_id, self.model.config.text.hidden_size

        def states(model: Bert, texts: Sequence[np.ndarray], _: None) -> Tensor:
            return model.pooled(encode(model, sep_id, texts, first_only=True).first())

        return Tunable(states, width=width, model=copy.deepcopy(self.model).requires_grad_(True))


class BertScorer:
    """Likelihoods of masked tokens."""

    predicts = frozenset({"text"})

    def __init__(self, model: Bert, sep_id: int, head: MaskedPredictionHead | TiedPredictionHead) -> None:
        self.model, self.sep_id, self.head = model, sep_id, head

    @torch.inference_mode()
    def read(
        self,
        texts: Sequence[np.ndarray] | None = None,
        pixels: Tensor | None = None,
        patches: Tensor | None = None,
    ) -> WordReading:
        """Encodes masked texts once: b arrays of ids."""
        if texts is None or pixels is not None or patches is not None:
            raise ValueError("BERT reads texts, without images")
        return WordReading(encode(self.model, self.sep_id, texts), self.model, self.head)
