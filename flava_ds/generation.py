"""Pictures from captions and captions from pictures, by filling masks a few at a time with the masked heads.

No network is added: the head that predicts the codes of masked patches beside a caption draws, and the one
that predicts masked words beside a picture writes. Source of the schedule: Chang et al. 2022, "MaskGIT".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.evaluation.protocols import Scorer

GREY = 127


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pictures are drawn."""

    steps: int = 8
    """Turns; each fixes the codes of which the model is surest, few at first."""
    guidance: float = 1.0
    """Moves scores away from those beside an empty caption: (1 + guidance) * with - guidance * without."""
    temperature: float = 1.0
    """Of the codes' distribution; towards 0 the likeliest is taken."""
    seed: int = 0


@torch.inference_mode()
def draw(
    scorer: Scorer,
    codebook: ImageCodebook,
    captions: Sequence[np.ndarray],
    empty: np.ndarray,
    how: Drawing,
    *,
    image_size: int,
    num_patches: int,
) -> Tensor:
    """Draws one picture per caption; returns its codes.

    `scorer` reads pixels, so after every turn the codes are decoded and shown to it, with the open ones
    masked. A picture depends on its place among `captions`, the number of them and the seed.

    Shapes:
        captions  b arrays of ids; `empty` is the caption of no words
        returns   [b n]  int64
    """
    size, device = len(captions), next(codebook.parameters()).device
    noise = torch.Generator().manual_seed(how.seed)
    codes = torch.zeros(size, num_patches, dtype=torch.int64)
    is_open = torch.ones(size, num_patches, dtype=torch.bool)
    pixels = torch.full((size, 3, image_size, image_size), GREY, dtype=torch.uint8)
    for turn in range(1, how.steps + 1):
        rows = is_open.flatten().nonzero().flatten()
        scores = scorer.read(captions, pixels, is_open).codes(rows).logits()
        if how.guidance:
            without = scorer.read([empty] * size, pixels, is_open).codes(rows).logits()
            scores = (1 + how.guidance) * scores - how.guidance * without
        scores = (scores.cpu() / (how.temperature or 1.0)).log_softmax(-1)
        found = (scores + (_gumbel(scores.shape, noise) if how.temperature else 0)).argmax(-1)
        codes.view(-1)[rows] = found
        sure = torch.full((size * num_patches,), math.inf)
        # What is fixed stays fixed. Early on chance has a say, too: otherwise background alone comes first.
        sure[rows] = scores.gather(1, found[:, None])[:, 0] + (1 - turn / how.steps) * _gumbel(
            rows.shape, noise
        )
        left = math.floor(num_patches * math.cos(math.pi / 2 * turn / how.steps)) if turn < how.steps else 0
        is_open = torch.zeros_like(is_open)
        is_open.scatter_(1, sure.view(size, -1).topk(left, largest=False).indices, True)
        pixels = decoded(codebook, codes.to(device), image_size)
    return codes


def decoded(codebook: ImageCodebook, codes: Tensor, image_size: int) -> Tensor:
    """Returns what codes look like, at the size that the model reads: [b n] int64 -> [b 3 H W] uint8."""
    pictures = interpolate(codebook.decode(codes), (image_size, image_size), mode="bilinear", antialias=True)
    return (255 * pictures.clamp(0, 1)).round().to(torch.uint8).cpu()


@torch.inference_mode()
def write(
    scorer: Scorer, tokenizer: WordPieceTokenizer, pixels: Tensor, *, words: int, turns: int | None = None
) -> tuple[list[list[int]], Tensor]:
    """Writes `words` tokens about each picture, the surest first; `turns` defaults to `words`.

    Shapes:
        pixels   [b 3 H W]  uint8
        returns  b lists of ids without special tokens, and the mean log probability of their tokens: [b]
    """
    size, turns = len(pixels), turns or words
    texts = np.full((size, words + 2), tokenizer.mask_id, dtype=np.int64)
    texts[:, 0], texts[:, -1] = tokenizer.cls_id, tokenizer.sep_id
    chosen = torch.zeros(size, words)
    for turn in range(1, turns + 1):
        is_open = torch.from_numpy(texts[:, 1:-1] == tokenizer.mask_id)
        rows = torch.from_numpy((texts == tokenizer.mask_id).reshape(-1).nonzero()[0])
        scores = scorer.read(list(texts), pixels).tokens(rows).logits()[:, : tokenizer.vocab_size].cpu()
        scores[:, [*tokenizer.special_ids]] = -math.inf
        best = scores.log_softmax(-1).max(-1)
        sure = torch.full((size, words), -math.inf)
        sure[is_open] = best.values
        count = math.ceil(words * turn / turns) - math.ceil(words * (turn - 1) / turns)
        places = sure.topk(count, dim=1).indices
        guesses = torch.zeros(size, words, dtype=torch.int64)
        guesses[is_open] = best.indices
        texts[np.arange(size)[:, None], places.numpy() + 1] = guesses.gather(1, places).numpy()
        chosen.scatter_(1, places, sure.gather(1, places))
    return texts[:, 1:-1].tolist(), chosen.mean(1)


def write_best(
    scorer: Scorer, tokenizer: WordPieceTokenizer, pixels: Tensor, *, words: Sequence[int], turns: int
) -> list[list[int]]:
    """Writes about each picture at every number of `words`, and keeps the text with the highest mean log
    probability of its tokens; see `write`.
    """
    tried = [write(scorer, tokenizer, pixels, words=count, turns=min(turns, count)) for count in words]
    best = torch.stack([scores for _, scores in tried]).argmax(0)
    return [tried[number][0][row] for row, number in enumerate(best.tolist())]


def _gumbel(shape: Sequence[int], noise: torch.Generator) -> Tensor:
    """Draws what makes an argmax of log probabilities a sample from them."""
    return -torch.rand(tuple(shape), generator=noise).clamp(1e-9, 1 - 1e-7).log().neg().log()
