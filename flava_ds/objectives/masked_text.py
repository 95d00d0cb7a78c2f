"""Predicts masked tokens: MLM on text, MMM-text on pairs (FLAVA, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import Share
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.data.order import uniform_at, uniforms
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.errors import ConfigError
from flava_ds.layers.heads import MaskedPredictionHead, TiedPredictionHead, tied_words
from flava_ds.objectives.base import Loss, Objective

_SELECT_STREAM, _ACTION_STREAM, _TOKEN_STREAM, _SHARE_STREAM = 12, 13, 14, 24


@dataclass(frozen=True, kw_only=True)
class MaskedTextConfig(ObjectiveConfig, type="mlm"):
    """Masked language modelling (MLM): predicts 15 % of the tokens, replaced 80/10/10 as in BERT."""

    masking: Literal["probability", "any_share"] = "probability"
    """'probability' as published; 'any_share' predicts between one token and all tokens of a text, as writing
    one by one needs (MaskGIT), and does not read mask_probability."""
    mask_probability: Share = 0.15
    """Probability that a token, or a word with whole_word, is predicted."""
    mask_token_share: Share = 0.8
    """Share of the predicted tokens that [MASK] replaces."""
    random_token_share: Share = 0.1
    """Share of the predicted tokens that a random token replaces; the rest stay unchanged."""
    whole_word: bool = False
    """Select all pieces of a word or none."""
    tied_decoder: bool = False
    """Use the model's word embeddings as the classifier, as BERT does."""

    kinds: ClassVar[frozenset[str]] = frozenset({"text"})
    title: ClassVar[str] = "Masked language"
    drawn_once: ClassVar[tuple[str, ...]] = (
        "masking",
        "mask_probability",
        "mask_token_share",
        "random_token_share",
        "whole_word",
    )
    ignores_padding: ClassVar[bool] = True
    view: ClassVar[str] = "text_masked"

    def classes(self, config: Any) -> int:
        return config.model.text.vocab_size

    def build(self, config: Any) -> MaskedLanguageModeling:
        shape = config.model.shape_of(self.view)
        kind = TiedPredictionHead if self.tied_decoder else MaskedPredictionHead
        head = kind(shape.hidden_size, self.classes(config), shape.layer_norm_eps)
        return MaskedLanguageModeling(self, head)

    def check(self, where: str, config: Any) -> None:
        if self.mask_token_share + self.random_token_share > 1 + 1e-9:
            raise ConfigError(
                f"{where}: mask_token_share {self.mask_token_share:g} and random_token_share "
                f"{self.random_token_share:g} are more than 1 together"
            )
        if self.tied_decoder:
            config.model.check_provides("word_table", f"{where}.tied_decoder")


@dataclass(frozen=True, kw_only=True)
class MultimodalMaskedTextConfig(MaskedTextConfig, type="mmm_text"):
    """Masked language modelling on pairs, by whole words, read from the multimodal encoder (MMM-text)."""

    whole_word: bool = True

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "MMM, text"
    view: ClassVar[str] = "multimodal_masked"


@dataclass(frozen=True, kw_only=True)
class JointMaskedTextConfig(MultimodalMaskedTextConfig, type="joint_mlm"):
    """Masked language modelling on pairs and on texts alone, with one head, for families whose one view reads
    both.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"pair", "text"})
    title: ClassVar[str] = "Masked words"

    def check(self, where: str, config: Any) -> None:
        super().check(where, config)
        config.model.check_provides("encode_texts", where)


@dataclass(frozen=True)
class TokenMask:
    """Masks tokens; mismatched texts are not predicted, except with `mismatched_too`. Adds

    Shapes:
        input_ids_masked  [T]  int64
        mlm_rows          [k]  int64, rows of [T] to predict
        mlm_labels        [k]  int64, the original ids there
    """

    config: MaskedTextConfig
    tokenizer: WordPieceTokenizer
    mismatched_too: bool = False

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        # plans without text mask no tokens
        assert draft.input_ids is not None and draft.lengths is not None
        masked = mask_tokens(draft.seeds, draft.input_ids, draft.lengths, self.config, self.tokenizer)
        predicted = draft.matched | self.mismatched_too
        kept = np.repeat(predicted, draft.lengths)[masked.rows]
        return {
            "input_ids_masked": masked.input_ids,
            "mlm_rows": masked.rows[kept],
            "mlm_labels": masked.labels[kept],
        }

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 3 * 8 * plan.max_tokens


class MaskedLanguageModeling(Objective):
    """Cross-entropy over the masked tokens of matched samples, read from the config's view."""

    def __init__(self, config: MaskedTextConfig, head: MaskedPredictionHead | TiedPredictionHead):
        super().__init__(config.weight)
        self.kinds, self.needs, self.view = config.kinds, frozenset({config.view}), config.view
        self.head = head

    def count(self, batch: Batch) -> int:
        return batch.listed("mlm_rows")

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {self.view: model.token_rows(self.view, batch.rows("mlm_rows"), batch)}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        table = tied_words(self.head, model)
        loss, correct = self.head.loss(hidden[self.view], batch["mlm_labels"], *table)
        return Loss(loss, self.count(batch), {"correct": correct})


@dataclass(frozen=True)
class MaskedTokens:
    """Packed text after masking.

    Shapes:
        input_ids  [T]  int64, corrupted
        rows       [k]  int64, rows of [T] to predict
        labels     [k]  int64, the original ids there
    """

    input_ids: np.ndarray
    rows: np.ndarray
    labels: np.ndarray


def mask_tokens(
    seeds: np.ndarray,
    input_ids: np.ndarray,
    lengths: np.ndarray,
    config: MaskedTextConfig,
    tokenizer: WordPieceTokenizer,
) -> MaskedTokens:
    """Selects tokens to predict and replaces them by [MASK], a random token, or themselves (80/10/10).

    Token-wise, each ordinary token is selected independently with mask_probability. With whole words, words
    are selected in random order until they cover mask_probability of the text's ordinary tokens (rounded, at
    least one), so that a short caption always has something to predict. Masking any share, the quota is the
    share cos(pi / 2 * u) of the text's tokens, u uniform.

    Shapes:
        seeds      [b]  uint64
        input_ids  [T]  int64, packed
        lengths    [b]  tokens of each text
    Source: BERT (Devlin et al. 2019), section 3.1 and the whole-word variant of its repository. Any share is
    MaskGIT's (Chang et al. 2022) cosine schedule, of which training sees every moment.
    """
    position = np.arange(len(input_ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    token_seeds = np.repeat(seeds, lengths)
    ordinary = ~np.isin(input_ids, tokenizer.special_ids)
    if config.whole_word or config.masking == "any_share":
        continues = tokenizer.continues_word[input_ids] & config.whole_word
        shares = np.full(len(seeds), config.mask_probability)
        if config.masking == "any_share":
            shares = np.cos(np.pi / 2 * uniforms(seeds, 1, stream=_SHARE_STREAM)[:, 0])
        selected = _select_words(seeds, position, lengths, ordinary, continues, shares)
    else:
        draws = uniform_at(token_seeds, position, stream=_SELECT_STREAM)
        selected = ordinary & (draws < config.mask_probability)
    rows = np.flatnonzero(selected)
    action = uniform_at(token_seeds[rows], position[rows], stream=_ACTION_STREAM)
    choice = uniform_at(token_seeds[rows], position[rows], stream=_TOKEN_STREAM)
    random_ids = tokenizer.ordinary_ids[(choice * len(tokenizer.ordinary_ids)).astype(np.int64)]
    labels = input_ids[rows]
    # One draw decides: below mask_share [MASK], below random_share a random token, else unchanged.
    mask_share = config.mask_token_share
    random_share = mask_share + config.random_token_share
    replaced = np.where(action < mask_share, tokenizer.mask_id, labels)
    by_random = (action >= mask_share) & (action < random_share)
    masked = input_ids.copy()
    masked[rows] = np.where(by_random, random_ids, replaced)
    return MaskedTokens(masked, rows, labels)


def _select_words(
    seeds: np.ndarray,
    position: np.ndarray,
    lengths: np.ndarray,
    ordinary: np.ndarray,
    continues: np.ndarray,
    shares: np.ndarray,
) -> np.ndarray:
    """Selects whole words in random order until a share of each text's tokens is covered: [b] -> [T] bool.

    A word never crosses a text boundary or a special token.
    """
    sample = np.repeat(np.arange(len(lengths)), lengths)
    previous_ordinary = np.concatenate([[False], ordinary[:-1]]) & (position > 0)
    starts = ordinary & ~(continues & previous_ordinary)
    first = np.flatnonzero(starts)
    word = np.cumsum(starts) - 1
    size = np.bincount(word[ordinary], minlength=len(first))
    owner = sample[first]
    order = np.lexsort((uniform_at(seeds[owner], position[first], stream=_SELECT_STREAM), owner))
    tokens = np.bincount(sample[ordinary], minlength=len(lengths))
    quota = np.where(shares > 0, np.maximum(1, np.rint(tokens * shares)), 0)
    covered = np.cumsum(size[order]) - size[order]
    before_text = np.cumsum(tokens) - tokens
    chosen = np.zeros(len(first), dtype=bool)
    chosen[order] = covered - before_text[owner[order]] < quota[owner[order]]
    return ordinary & chosen[np.where(ordinary, word, 0)] if len(first) else ordinary
