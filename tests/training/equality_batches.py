"""Global batches for the equality suite: a function of the step, cut into any number of parts, with every way
in which parts can differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sample_batches import CLS, MASK, SEP, masked_share_of

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.flava.views import Kind

STEPS, SIZE = 20, 24
"""Optimizer steps of a run, and samples of each step's global batch: a multiple of all numbers of parts that
are tested.
"""
KINDS = (Kind.PAIR, Kind.IMAGE, Kind.TEXT, Kind.PAIR)
CONDITIONS = {
    "alike": "every sample has 8 tokens, 2 of them masked, 3 masked patches, and its own caption",
    "unequal": (
        "captions of 3 to 14 tokens, short ones first; random numbers of masked tokens, masked patches and "
        "matched pairs"
    ),
    "one part": (
        "the same captions, but only the first two samples have anything masked or matched: most ranks "
        "have none"
    ),
    "none": "the same captions, and nothing is masked or matched on any rank",
    "half masked": "unequal, and of pairs only every second sample goes through the masked passes",
}
"""What the samples of a step are like."""


def kind_at(step: int) -> Kind:
    """Returns a step's kind; with `condition_at`, twenty steps meet every condition in every kind."""
    return KINDS[step % len(KINDS)]


def condition_at(step: int) -> str:
    """Returns a step's condition."""
    return list(CONDITIONS)[step % len(CONDITIONS)]


@dataclass(frozen=True)
class Sample:
    """One sample before packing.

    Shapes:
        pixels        [c H W]  uint8
        codes         [n]
        patches       [n]      bool, masked
        tokens        [t]
        masked        [t]      bool
        matched                whether the caption is the image's own
    """

    pixels: np.ndarray
    codes: np.ndarray
    patches: np.ndarray
    tokens: np.ndarray
    masked: np.ndarray
    matched: bool


def draw_samples(step: int, config: Config) -> list[Sample]:
    """Draws the global batch of a step."""
    draw, condition = np.random.default_rng(step), condition_at(step)
    lengths = np.full(SIZE, 8) if condition == "alike" else np.sort(draw.integers(3, 15, SIZE))
    return [_sample(draw, config, condition, place, int(length)) for place, length in enumerate(lengths)]


def _sample(draw: np.random.Generator, config: Config, condition: str, place: int, length: int) -> Sample:
    edge, patches = config.model.image.image_size, config.model.image.num_patches
    tokens = np.concatenate([[CLS], draw.integers(MASK + 1, config.model.text.vocab_size, length - 2), [SEP]])
    scores = draw.random(patches), np.concatenate([[2.0], draw.random(length - 2), [2.0]])
    matched = bool(draw.random() < 0.6)
    if condition == "alike":
        masks, matched = (np.argsort(np.argsort(scores[0])) < 3, np.argsort(np.argsort(scores[1])) < 2), True
    elif condition == "none" or (condition == "one part" and place > 1):
        masks, matched = tuple(np.zeros(len(score), dtype=bool) for score in scores), False
    elif condition == "one part":
        masks, matched = (
            (scores[0] <= max(scores[0].min(), 0.4), scores[1] <= max(scores[1].min(), 0.4)),
            True,
        )
    else:
        masks = scores[0] < draw.random(), scores[1] < draw.random()
    pixels = draw.integers(0, 256, (3, edge, edge), dtype=np.uint8)
    return Sample(
        pixels, draw.integers(0, config.codebook.vocab_size, patches), masks[0], tokens, masks[1], matched
    )


def pack(kind: Kind, samples: list[Sample], *, masks: bool = True) -> Batch:
    """Packs samples into one micro-batch, as the collator does."""
    tensors: dict = {}
    numbers: dict = {}
    matched = np.array([kind != Kind.PAIR or sample.matched for sample in samples])
    if kind != Kind.TEXT:
        tensors["pixel_values"] = torch.from_numpy(np.stack([sample.pixels for sample in samples]))
    if kind != Kind.TEXT and masks:
        patches = np.stack([sample.patches for sample in samples])
        tensors["bool_masked_pos"] = torch.from_numpy(patches)
        tensors["image_codes"] = torch.from_numpy(np.stack([sample.codes for sample in samples]))
        tensors["mim_rows"] = torch.from_numpy(np.flatnonzero(patches & matched[:, None]))
    if kind != Kind.IMAGE:
        lengths = [len(sample.tokens) for sample in samples]
        tokens, masked = (
            np.concatenate([getattr(sample, name) for sample in samples]) for name in ("tokens", "masked")
        )
        tensors["input_ids"] = torch.from_numpy(tokens)
        tensors["cu_seqlens"] = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))
        numbers["max_seqlen"] = max(lengths)
    if kind != Kind.IMAGE and masks:
        rows = np.flatnonzero(masked & np.repeat(matched, lengths))
        tensors["input_ids_masked"] = torch.from_numpy(np.where(masked, MASK, tokens))
        tensors |= {"mlm_rows": torch.from_numpy(rows), "mlm_labels": torch.from_numpy(tokens[rows])}
    if kind == Kind.PAIR:
        tensors |= {
            "itm_labels": torch.from_numpy(matched.astype(np.int64)),
            "matched_rows": torch.from_numpy(np.flatnonzero(matched)),
        }
    return Batch(kind=kind, source=str(kind), size=len(samples), tensors=tensors, numbers=numbers)


def parts_of(step: int, config: Config, parts: int) -> list[Batch]:
    """Cuts the global batch of a step into equal micro-batches, those of the first rank first."""
    samples, kind, size = draw_samples(step, config), kind_at(step), SIZE // parts
    batches = []
    for part in (samples[start : start + size] for start in range(0, SIZE, size)):
        if kind == Kind.PAIR and condition_at(step) == "half masked":
            chosen = tuple(range(0, len(part), 2))
            batches.append(masked_share_of(pack(kind, part), chosen, pack(kind, part[::2])))
        else:
            batches.append(pack(kind, part))
    return batches
