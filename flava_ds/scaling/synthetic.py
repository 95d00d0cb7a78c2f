"""Batches that hold no data but have the shapes, masks and lengths that training would see."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flava_ds.batch import Batch
from flava_ds.data.collate import pack
from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Draft, RegionsPlan, TargetsPlan
from flava_ds.data.reader import is_masked
from flava_ds.data.regions import PackedRegions
from flava_ds.data.targets import PackedTargets
from flava_ds.scaling.captions import Lengths

_STREAM = 21
OBJECTS = 8
"""Labelled objects of an image; COCO has 7.7 on average (Lin et al. 2014)."""


def draft_of(plan: BatchPlan, seeds: np.ndarray, lengths: np.ndarray | None) -> Draft:
    """Draws the samples of a batch: ordinary tokens between the special ones, blank pictures.

    Texts that a composer makes have two segments, cut in the middle. Samples have as many regions as they
    may have.

    Shapes:
        seeds    [b]  uint64
        lengths  [b]  tokens of each text; None without text
    """
    count = len(seeds)
    shapes: dict[str, tuple[int, ...]] = {name: (3, edge, edge) for name, edge in plan.views.items()}
    shapes |= {name: (len(own.transforms), 3, own.size, own.size) for name, own in plan.crops.items()}
    views = {name: torch.zeros(count, *shape, dtype=torch.uint8) for name, shape in shapes.items()}
    matched = uniforms(seeds, 1, stream=_STREAM)[:, 0] >= plan.mismatch_probability
    ids = None
    if lengths is not None:
        ids = np.concatenate(
            [_tokens(plan.tokenizer, int(seed), int(n)) for seed, n in zip(seeds, lengths, strict=True)]
        )
        if plan.composer is not None:
            ends, tokenizer = np.cumsum(lengths), plan.composer.tokenizer
            ids[ends - 1] = ids[ends - (lengths + 1) // 2 - 1] = tokenizer.sep_id
            ids[ends - lengths] = tokenizer.cls_id
    codes = np.zeros((count, plan.stored_codes), dtype=np.int64) if plan.stored_codes else None
    matching = None
    if plan.matches_apart and ids is not None and lengths is not None:
        matching = ids, lengths
    return Draft(
        seeds=seeds,
        matched=matched,
        views=views,
        codes=codes,
        identities=np.arange(count, dtype=np.int64) if plan.identities else None,
        own_tags=np.ones(count, dtype=bool) if plan.wrong_tags_probability else None,
        regions=None if plan.regions is None else _regions(plan.regions, count),
        targets=None if plan.targets is None else _targets(plan.targets, count),
        input_ids=ids,
        lengths=lengths,
        matching=matching,
    )


def _regions(plan: RegionsPlan, count: int) -> PackedRegions:
    """Returns blank regions, each the whole image."""
    rows = count * plan.most
    return PackedRegions(
        features=np.zeros((rows, plan.feature_size), dtype=np.float32),
        boxes=np.tile(np.array([0, 0, 1, 1], dtype=np.float32), (rows, 1)),
        classes=np.zeros((rows, plan.num_classes), dtype=np.float32) if plan.num_classes else None,
        lengths=np.full(count, plan.most, dtype=np.int64),
    )


def _targets(plan: TargetsPlan, count: int) -> PackedTargets:
    """Returns labels of the first class, as many objects as an image of COCO has or one label a sample; every
    object has one attribute.
    """
    each = min(plan.most, OBJECTS if plan.boxes else 1)
    rows = count * each
    described = np.full((rows, plan.most_attributes), -1, dtype=np.int64)
    described[:, :1] = 0
    return PackedTargets(
        labels=np.zeros(rows, dtype=np.int64),
        boxes=np.tile(np.array([0, 0, 1, 1], dtype=np.float32), (rows, 1)) if plan.boxes else None,
        scores=np.ones(rows, dtype=np.float32),
        lengths=np.full(count, each, dtype=np.int64),
        attributes=described if plan.num_attributes else None,
    )


def _tokens(tokenizer: Any, seed: int, length: int) -> np.ndarray:
    """Draws a text: [length] int64, whose first and last tokens are special where the tokenizer has such."""
    ordinary = getattr(tokenizer, "ordinary_ids", None)
    random = np.random.default_rng(seed)
    ids = (
        random.integers(0, tokenizer.vocab_size, length)
        if ordinary is None
        else random.choice(ordinary, length)
    )
    special: Any = getattr(tokenizer, "special_ids", ())
    if len(special):
        ids[0] = ids[-1] = special[-1]
    return ids.astype(np.int64)


def batch_of(plan: BatchPlan, source: str, lengths: Lengths | None, size: int, times: int = 1) -> Batch:
    """Returns a batch of `size` samples, each of them `times` times, so that costs grow in proportion."""
    seeds = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    texts = None if lengths is None or plan.tokenizer is None else np.tile(lengths.quantiles(size), times)
    draft = draft_of(plan, np.tile(seeds, times), texts)
    rows = None
    if plan.masked_share < 1:
        chosen = np.flatnonzero(is_masked(np.arange(size), plan.masked_share))
        rows = np.concatenate([chosen + size * turn for turn in range(times)])
    tensors, numbers = pack(plan, draft, rows)
    return Batch(kind=plan.kind, source=source, size=size * times, tensors=tensors, numbers=numbers)
