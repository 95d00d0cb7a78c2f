"""The corruptions of masked modelling, as functions of per-sample seeds: BEiT's block-wise patch mask and BERT's token mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flava_ds.config import MaskedImageConfig, MaskedTextConfig
from flava_ds.data.order import uniform_at, uniforms
from flava_ds.data.tokenizer import WordPieceTokenizer

_IMAGE_STREAM, _SELECT_STREAM, _ACTION_STREAM, _TOKEN_STREAM = 11, 12, 13, 14


def mask_patches(seeds: np.ndarray, grid: int, config: MaskedImageConfig) -> np.ndarray:
    """Masks rectangular blocks of patches until the limit is reached or no block of `attempts_per_block` tries fits.

    A block's area is uniform between min_patches_per_block and what is left to mask, its aspect ratio log-uniform; it is taken when it
    covers something new and stays within the limit. All samples advance together, one try per turn.

    Shapes:
        seeds  [b]            uint64
        out    [b grid*grid]  bool, True where the patch is replaced
    Source: BEiT (Bao et al. 2021), algorithm 1, with the numbers of its published code.
    """
    mask = np.zeros((len(seeds), grid, grid), dtype=bool)
    masked, failed = np.zeros(len(seeds), dtype=np.int64), np.zeros(len(seeds), dtype=np.int64)
    log_ratio = np.log(config.min_aspect_ratio)
    lines = np.arange(grid)
    limit = min(config.num_masked_patches, grid * grid)
    active, turn = np.arange(len(seeds) if limit > 0 else 0), 0
    while active.size:
        area, ratio, row, column = uniforms(seeds[active], 4, stream=_IMAGE_STREAM, start=4 * turn).T
        left = limit - masked[active]
        area = config.min_patches_per_block + area * (left - config.min_patches_per_block)
        ratio = np.exp(log_ratio * (1 - 2 * ratio))
        height, width = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
        top, start = (row * (grid - height + 1)).astype(np.int64), (column * (grid - width + 1)).astype(np.int64)
        rows = (lines >= top[:, None]) & (lines < (top + height)[:, None])
        columns = (lines >= start[:, None]) & (lines < (start + width)[:, None])
        merged = mask[active] | (rows[:, :, None] & columns[:, None, :])
        gain = merged.sum((1, 2)) - masked[active]
        taken = (height < grid) & (width < grid) & (gain > 0) & (gain <= left)
        mask[active[taken]] = merged[taken]
        masked[active] += np.where(taken, gain, 0)
        failed[active] = np.where(taken, 0, failed[active] + 1)
        active = active[(masked[active] < limit) & (failed[active] < config.attempts_per_block)]
        turn += 1
    return mask.reshape(len(seeds), grid * grid)


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


def mask_tokens(seeds: np.ndarray, input_ids: np.ndarray, lengths: np.ndarray, config: MaskedTextConfig, tokenizer: WordPieceTokenizer) -> MaskedTokens:
    """Selects tokens to predict and replaces most of them: by [MASK], by a random ordinary token, or not at all (80/10/10).

    Token-wise, each ordinary token is selected on its own with mask_probability. By whole words, words in random order are selected until
    mask_probability of the text's ordinary tokens (rounded, at least one) are covered, so a short caption always has something to predict.

    Shapes:
        seeds      [b]  uint64
        input_ids  [T]  int64, packed
        lengths    [b]  tokens of each text
    Source: BERT (Devlin et al. 2019), section 3.1 and the whole-word variant of its repository.
    """
    position = np.arange(len(input_ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    token_seeds = np.repeat(seeds, lengths)
    ordinary = ~np.isin(input_ids, tokenizer.special_ids)
    if config.whole_word:
        selected = _select_words(seeds, position, lengths, ordinary, tokenizer.continues_word[input_ids], config.mask_probability)
    else:
        selected = ordinary & (uniform_at(token_seeds, position, stream=_SELECT_STREAM) < config.mask_probability)
    rows = np.flatnonzero(selected)
    action = uniform_at(token_seeds[rows], position[rows], stream=_ACTION_STREAM)
    choice = uniform_at(token_seeds[rows], position[rows], stream=_TOKEN_STREAM)
    random_ids = tokenizer.ordinary_ids[(choice * len(tokenizer.ordinary_ids)).astype(np.int64)]
    labels = input_ids[rows]
    replaced = np.where(action < config.mask_token_share, tokenizer.mask_id, labels)
    by_random = (action >= config.mask_token_share) & (action < config.mask_token_share + config.random_token_share)
    masked = input_ids.copy()
    masked[rows] = np.where(by_random, random_ids, replaced)
    return MaskedTokens(masked, rows, labels)


def _select_words(seeds: np.ndarray, position: np.ndarray, lengths: np.ndarray, ordinary: np.ndarray, continues: np.ndarray, probability: float) -> np.ndarray:
    """Selects whole words in random order until the text's quota is covered: [T] bool. Words never reach across texts or special tokens."""
    sample = np.repeat(np.arange(len(lengths)), lengths)
    previous_ordinary = np.concatenate([[False], ordinary[:-1]]) & (position > 0)
    starts = ordinary & ~(continues & previous_ordinary)
    first = np.flatnonzero(starts)
    word = np.cumsum(starts) - 1
    size = np.bincount(word[ordinary], minlength=len(first))
    owner = sample[first]
    order = np.lexsort((uniform_at(seeds[owner], position[first], stream=_SELECT_STREAM), owner))
    tokens = np.bincount(sample[ordinary], minlength=len(lengths))
    quota = np.where(probability > 0, np.maximum(1, np.rint(tokens * probability)), 0)
    covered = np.cumsum(size[order]) - size[order]
    before_text = np.cumsum(tokens) - tokens
    chosen = np.zeros(len(first), dtype=bool)
    chosen[order] = covered - before_text[owner[order]] < quota[owner[order]]
    return ordinary & chosen[np.where(ordinary, word, 0)] if len(first) else ordinary
