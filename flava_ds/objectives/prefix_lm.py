"""Prefix language modelling: reads the beginning of a text, writes the rest token by token (SimVLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flava_kernels.linear_cross_entropy import linear_cross_entropy
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.objectives.base import Loss, Objective

_PREFIX_STREAM = 16


@dataclass(frozen=True, kw_only=True)
class PrefixLmConfig(ObjectiveConfig, type="prefix_lm"):
    """Prefix language modelling of pairs: an image and a random prefix of its text are read, the rest of the
    text is written. Every prefix from none to all but the last token is equally likely.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "Prefix language model, pairs"
    view: ClassVar[str] = "suffix"

    def classes(self, config: Any) -> int:
        return config.model.text.vocab_size

    def corruptions(self, config: Any, source: Any) -> tuple[PrefixSplit]:
        return (PrefixSplit(),)

    def build(self, config: Any) -> PrefixLanguageModeling:
        return PrefixLanguageModeling(self)

    def check(self, where: str, config: Any) -> None:
        config.model.check_view(self.view, where)


@dataclass(frozen=True, kw_only=True)
class TextPrefixLmConfig(PrefixLmConfig, type="text_prefix_lm"):
    """Prefix language modelling of texts alone."""

    kinds: ClassVar[frozenset[str]] = frozenset({"text"})
    title: ClassVar[str] = "Prefix language model, text"
    view: ClassVar[str] = "text_suffix"


@dataclass(frozen=True)
class PrefixSplit:
    """Cuts each text of n tokens into a prefix of p, 1 <= p < n, and the rest. The first token, [CLS], is
    always read. Adds

    Shapes:
        prefix_rows        [P]    int64, rows of [T] that are read
        suffix_rows        [S]    int64, rows of [T] after which a token is written: from the prefix's last
                                  to the text's last but one
        suffix_cu_seqlens  [b+1]  int32 over the latter; those of the prefixes are the difference from the
                                  texts'
    """

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        assert draft.input_ids is not None and draft.lengths is not None  # its kinds have texts
        lengths = draft.lengths
        draws = uniforms(draft.seeds, 1, stream=_PREFIX_STREAM)[:, 0]
        prefixes = 1 + np.floor(draws * (lengths - 1)).astype(np.int64)
        position = np.arange(len(draft.input_ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        of_token, of_text = np.repeat(prefixes, lengths), np.repeat(lengths, lengths)
        written = (position >= of_token - 1) & (position < of_text - 1)
        return {
            "prefix_rows": np.flatnonzero(position < of_token),
            "suffix_rows": np.flatnonzero(written),
            "suffix_cu_seqlens": np.cumsum([0, *(lengths - prefixes)]).astype(np.int32),
        }

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 8 * (plan.max_tokens + 1)


class PrefixLanguageModeling(Objective):
    """Cross-entropy of every token after the prefix, given all before it, with the model's word embeddings as
    the classifier, without bias.

    Source: Wang et al. 2022, "SimVLM", section 3.1; the sum over tokens becomes a mean over those of a step.
    """

    def __init__(self, config: PrefixLmConfig):
        super().__init__(config.weight)
        self.kinds, self.needs, self.view = config.kinds, frozenset({config.view}), config.view

    def count(self, batch: Batch) -> int:
        return batch["suffix_rows"].shape[0]

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {self.view: model.suffix_rows(batch)}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        labels = batch["input_ids"].index_select(0, batch["suffix_rows"] + 1)
        table = model.word_table()
        bias = table.new_zeros(table.shape[0])
        loss, correct = linear_cross_entropy(hidden[self.view], table, bias, labels)
        return Loss(loss, self.count(batch), {"correct": correct})
