"""Collates decoded samples into a Batch: augments, tokenises, packs and corrupts, seeded by the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from flava_ds.batch import Batch, ReadReport
from flava_ds.config import SourceConfig
from flava_ds.data.order import crop_seeds, uniforms
from flava_ds.data.padding import padded
from flava_ds.data.plan import SENT_VIEW, BatchPlan, Draft
from flava_ds.data.regions import PackedRegions, SampleRegions
from flava_ds.data.samples import Sample, seeds_of
from flava_ds.data.targets import PackedTargets, SampleTargets
from flava_ds.data.transforms import Empty, ImageTransform

_MATCH_STREAM = 5


class Collator:
    """Makes the batches of one source from its plan. Runs in dataloader workers; picklable."""

    def __init__(self, plan: BatchPlan, name: str, source: SourceConfig) -> None:
        self.plan, self.name, self.source = plan, name, source
        self.transform = ImageTransform(source.transform, tuple(plan.views.values())) if plan.views else None
        self.crops = [
            [ImageTransform(transform, (crops.size,)) for transform in crops.transforms]
            for crops in plan.crops.values()
        ]

    def __call__(
        self,
        samples: Sequence[Sample],
        skipped: Mapping[str, int] | None = None,
        borrowed: Mapping[int, str] | None = None,
        masked_rows: np.ndarray | None = None,
        views: Sequence[Tensor] | None = None,
        tags: Mapping[int, str] | None = None,
    ) -> Batch:
        """Collates samples into a batch.

        `borrowed` (row -> caption, see `mismatch`) replaces captions, or those of the second texts of a plan
        that matches apart, or goes to the plan's composer. `tags` do so with those of the regions. Given
        `masked_rows` [m], the corruptions see only these samples. `views` are the images from `augment`.

        The result for a sample depends only on its seed and what it borrows, never on its neighbours.
        """
        matched = np.ones(len(samples), dtype=bool)
        texts = [cast(str, sample.text) for sample in samples]  # image batches: None, and never read
        borrowed = borrowed or {}
        matched[list(borrowed)] = False
        views = self.augment(samples, self.empty_views(len(samples))) if views is None else views
        wrong = tags or {}
        samples = [
            sample if row not in wrong else with_tags(sample, wrong[row])
            for row, sample in enumerate(samples)
        ]
        draft, cut = self._draft(samples, texts, borrowed, matched, views)
        if self.plan.wrong_tags_probability:
            own = np.isin(np.arange(len(samples)), [*wrong], invert=True)
            draft = replace(draft, own_tags=own)
        tensors, numbers = pack(self.plan, draft, masked_rows)
        return Batch(
            kind=self.plan.kind,
            source=self.name,
            size=len(samples),
            keys=tuple(sample.key for sample in samples),
            tensors=tensors,
            numbers=numbers,
            read=ReadReport(
                tokens=0 if draft.input_ids is None else len(draft.input_ids),
                cut_tokens=cut,
                skipped=dict(skipped or {}),
            ),
        )

    def empty_views(self, count: int, empty: Empty = torch.empty) -> list[Tensor]:
        """Allocates what `augment` fills: [count 3 S S] uint8 for each size S, then [count a 3 S S] for each
        set of crops; nothing without images."""
        whole = self.transform.empty(count, empty) if self.transform is not None else []
        return whole + [
            empty(count, len(crops.transforms), 3, crops.size, crops.size, dtype=torch.uint8)
            for crops in self.plan.crops.values()
        ]

    def augment(self, samples: Sequence[Sample], views: Sequence[Tensor]) -> Sequence[Tensor]:
        """Fills the samples' views and crops, of which each depends on its own sample alone, and returns
        them.
        """
        images, seeds = [cast(Tensor, sample.image) for sample in samples], seeds_of(samples)
        whole = len(self.plan.views)
        if self.transform is not None:
            self.transform(images, seeds, views[:whole])
        for name, transforms, crops in zip(self.plan.crops, self.crops, views[whole:], strict=True):
            for number, transform in enumerate(transforms):
                transform(images, crop_seeds(seeds, name, number), [crops[:, number]])
        return views

    def _draft(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str],
        borrowed: Mapping[int, str],
        matched: np.ndarray,
        views: Sequence[Tensor],
    ) -> tuple[Draft, int]:
        """Combines images and tokens into a draft; also returns the number of tokens cut."""
        ids, lengths, matching, cut = None, None, None, 0
        if self.plan.tokenizer is not None:
            apart = self.plan.matches_apart
            encoded, cut = self._encode(samples, texts, {} if apart else borrowed)
            ids, lengths = _concatenated(encoded)
            if apart:
                others, _ = self.plan.tokenizer.encode_counting([*borrowed.values()], self.plan.max_tokens)
                replaced = dict(zip(borrowed, others, strict=True))
                matching = _concatenated([replaced.get(row, own) for row, own in enumerate(encoded)])
        codes = None
        if self.plan.stored_codes:
            codes = np.stack([cast(np.ndarray, sample.codes) for sample in samples])
        regions = None
        if self.plan.regions is not None:
            found = [cast(SampleRegions, sample.regions) for sample in samples]
            regions = PackedRegions.of(found, classes=self.plan.regions.num_classes > 0)
        targets = None
        if self.plan.targets is not None:
            targets = PackedTargets.of([cast(SampleTargets, sample.targets) for sample in samples])
        identities = None
        if self.plan.identities:
            identities = np.array([sample.identity for sample in samples], dtype=np.int64)
        named = dict(zip((*self.plan.views, *self.plan.crops), views, strict=True))
        draft = Draft(
            seeds=seeds_of(samples),
            matched=matched,
            views=named,
            codes=codes,
            regions=regions,
            targets=targets,
            identities=identities,
            input_ids=ids,
            lengths=lengths,
            matching=matching,
        )
        return draft, cut

    def _encode(
        self, samples: Sequence[Sample], texts: Sequence[str], borrowed: Mapping[int, str]
    ) -> tuple[list[np.ndarray], int]:
        """Encodes the texts, or those that replace them; also returns the number of tokens cut."""
        if self.plan.composer is not None:
            return self.plan.composer(samples, borrowed, self.plan.max_tokens)
        assert self.plan.tokenizer is not None  # its plan has text
        read = [borrowed.get(row, text) for row, text in enumerate(texts)]
        return self.plan.tokenizer.encode_counting(read, self.plan.max_tokens)


def pack(
    plan: BatchPlan, draft: Draft, masked_rows: np.ndarray | None = None
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Returns the tensors and numbers of a draft's batch; the corruptions see `masked_rows` [m], or all."""
    tensors: dict[str, Tensor] = {
        name: draft.views[name] for name in (SENT_VIEW, *plan.crops) if name in draft.views
    }
    numbers: dict[str, int] = {}
    if draft.lengths is not None:
        _add_packed("", {"input_ids": draft.input_ids}, draft.lengths, tensors, numbers)
    if plan.sample_seeds:
        tensors["sample_seeds"] = torch.from_numpy(draft.seeds.view(np.int64))
    if draft.identities is not None:
        tensors["identities"] = torch.from_numpy(draft.identities)
    _add_regions(draft, tensors, numbers)
    if draft.targets is not None:
        names = ("labels", "boxes", "scores", "attributes")
        rows = {name: getattr(draft.targets, name) for name in names}
        _add_packed("target_", rows, draft.targets.lengths, tensors, numbers)
    if (draft.views or draft.regions) and draft.lengths is not None:
        tensors["matched_rows"] = torch.from_numpy(np.flatnonzero(draft.matched))
    seen = draft
    if masked_rows is not None:
        seen = draft.at(masked_rows)
        tensors["masked_samples"] = torch.from_numpy(masked_rows)
        if seen.lengths is not None:
            _add_packed("masked_", {}, seen.lengths, tensors, numbers)
    if seen.matching is not None:
        ids, lengths = seen.matching
        _add_packed("matching_", {"input_ids": ids}, lengths, tensors, numbers)
    for corruption in plan.corruptions:
        tensors |= {name: torch.as_tensor(value) for name, value in corruption(seen).items()}
    if plan.pad_to_multiple_of:
        return padded(tensors, numbers, plan.pad_to_multiple_of, plan.max_tokens)
    return tensors, numbers


def _concatenated(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns b arrays of ids as one, and their lengths: [T], [b]."""
    return np.concatenate(texts), np.array([len(own) for own in texts], dtype=np.int64)


def _add_packed(
    prefix: str,
    rows: Mapping[str, np.ndarray | None],
    lengths: np.ndarray,
    tensors: dict[str, Tensor],
    numbers: dict[str, int],
) -> None:
    """Adds the packed rows that are there, and the bounds and greatest length of their sequences."""
    tensors |= {f"{prefix}{name}": torch.from_numpy(own) for name, own in rows.items() if own is not None}
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tensors[f"{prefix}cu_seqlens"] = torch.from_numpy(ends)
    numbers[f"{prefix}max_seqlen"] = int(lengths.max())


def _add_regions(draft: Draft, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
    """Adds packed regions, if any, and the lengths of the longest sequences of a text and its regions."""
    if draft.regions is None:
        return
    lengths = draft.regions.lengths
    rows = {name: getattr(draft.regions, name) for name in ("features", "boxes", "classes")}
    _add_packed("region_", rows, lengths, tensors, numbers)
    texts = {"": draft.lengths, "matching_": None if draft.matching is None else draft.matching[1]}
    for prefix, words in texts.items():
        if words is not None:
            numbers[f"{prefix}joint_max_seqlen"] = int((words + lengths).max())


def with_tags(sample: Sample, tags: str) -> Sample:
    """Returns a sample with other tags of its regions."""
    assert sample.regions is not None  # only samples with regions have tags
    return replace(sample, regions=replace(sample.regions, tags=tags))


def mismatch(
    captions: Sequence[tuple[str, ...]],
    seeds: np.ndarray,
    probability: float,
    partners: Callable[[np.ndarray, np.ndarray], Iterable[Iterable[str]]],
    *,
    among: np.ndarray | None = None,
    above: float = 0.0,
) -> dict[int, str]:
    """Draws which samples lose their caption, and replaces it by another sample's: row -> caption.

    Only rows in `among`, if given, can be drawn, and none whose draw is below `above`, which another call has
    drawn. A sample stays matched when all its partners' captions are
    also its own. `partners(rows, draws)` yields candidate captions lazily for each drawn row; the draws in
    [0, 1) pick where they come from.

    Shapes:
        captions  b tuples, all captions of each sample
        seeds     [b]  uint64
        among     [m]  int64
    """
    borrowed: dict[int, str] = {}
    if probability <= 0:
        return borrowed
    draws = uniforms(seeds, 2, stream=_MATCH_STREAM)
    drawn = np.flatnonzero((draws[:, 0] >= above) & (draws[:, 0] < above + probability))
    rows = drawn if among is None else np.intersect1d(drawn, among)
    for row, texts in zip(rows.tolist(), partners(rows, draws[rows, 1]), strict=True):
        other = next((text for text in texts if text not in captions[row]), None)
        if other is not None:
            borrowed[row] = other
    return borrowed
