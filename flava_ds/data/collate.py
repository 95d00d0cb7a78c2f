"""Decoded samples to one Batch: augmentation, tokenisation, packing and every corruption, drawn from the samples' own seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.batch import Batch, Kind
from flava_ds.config import Config, MaskedImageConfig, MaskedTextConfig, SourceConfig
from flava_ds.data.masking import mask_patches, mask_tokens
from flava_ds.data.order import uniforms
from flava_ds.data.sources import Sample
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.data.transforms import Empty, ImageTransform
from flava_ds.errors import ConfigError

_MATCH_STREAM = 5


class Collator:
    """Makes batches of one source's kind. Runs in loader processes; picklable.

    Of a pair batch, only samples that keep their caption have patches and tokens to predict.
    """

    def __init__(self, config: Config, source: SourceConfig) -> None:
        """Raises: DataError or ConfigError when the vocabulary is missing or larger than model.text.vocab_size."""
        self.config, self.source, self.kind = config, source, Kind(source.kind)
        objectives = config.objectives
        pair_masks = objectives.mmm_image.weight > 0 or objectives.mmm_text.weight > 0 or objectives.itm.weight > 0
        image_mask, text_mask = (objectives.mmm_image, objectives.mmm_text) if self.kind == Kind.PAIR else (objectives.mim, objectives.mlm)
        self.image_mask: MaskedImageConfig | None = image_mask if (pair_masks if self.kind == Kind.PAIR else image_mask.weight > 0) else None
        self.text_mask: MaskedTextConfig | None = text_mask if (pair_masks if self.kind == Kind.PAIR else text_mask.weight > 0) else None
        self.mismatch_probability = objectives.itm.mismatch_probability if self.kind == Kind.PAIR and objectives.itm.weight > 0 else 0.0
        if self.kind != Kind.TEXT:
            size, codebook_size = config.model.image.image_size, config.codebook.image_size
            self.needs_codes = image_mask.weight > 0 and source.image_codes_key is None
            self.transform = ImageTransform(source.transform, (size, codebook_size) if self.needs_codes and size != codebook_size else (size,))
        if self.kind != Kind.IMAGE:
            self.tokenizer = WordPieceTokenizer(config.data.vocabulary)
            if self.tokenizer.vocab_size > config.model.text.vocab_size:
                raise ConfigError(
                    f"model.text.vocab_size {config.model.text.vocab_size} is smaller than the {self.tokenizer.vocab_size} entries of "
                    f"{self.tokenizer.file}; raise it"
                )

    def __call__(
        self,
        samples: Sequence[Sample],
        skipped: Mapping[str, int] | None = None,
        borrowed: Mapping[int, str] | None = None,
        masked_rows: np.ndarray | None = None,
        views: Sequence[Tensor] | None = None,
    ) -> Batch:
        """Collates samples, those in `borrowed` (row -> caption, see `mismatch`) with another's caption instead of their own.

        The result for one sample depends on its seed and its borrowed caption alone, never on its neighbours. With `masked_rows` [m] only
        these samples of a pair batch are masked: they make up the batch's `masked`. `views` are what `augment` has made of the pictures.
        """
        seeds = np.array([sample.seed for sample in samples], dtype=np.uint64)
        matched = np.ones(len(samples), dtype=bool)
        texts = [sample.text for sample in samples]
        for row, text in (borrowed or {}).items():
            texts[row], matched[row] = text, False
        views = self.augment(samples, self.empty_views(len(samples))) if views is None else views
        token_ids, cut = self.tokenizer.encode_counting(texts, self.source.max_tokens) if self.kind != Kind.IMAGE else ((), 0)
        augmented = _Augmented(tuple(samples), seeds, matched, tuple(views), tuple(token_ids))
        if masked_rows is None:
            return replace(self._batch(augmented, skipped, masks=True), cut_tokens=cut)
        masked = self._batch(augmented.at(masked_rows), None, masks=True)
        return replace(self._batch(augmented, skipped, masks=False), masked=masked, cut_tokens=cut)

    def empty_views(self, count: int, empty: Empty = torch.empty) -> list[Tensor]:
        """Allocates a batch's views: [count 3 S S] uint8 for each size S; none without pictures."""
        return self.transform.empty(count, empty) if self.kind != Kind.TEXT else []

    def augment(self, samples: Sequence[Sample], views: Sequence[Tensor]) -> Sequence[Tensor]:
        """Fills the samples' views, of which each depends on its own sample alone, and returns them."""
        if views:
            self.transform([sample.image for sample in samples], np.array([sample.seed for sample in samples], dtype=np.uint64), views)
        return views

    def _batch(self, augmented: _Augmented, skipped: Mapping[str, int] | None, *, masks: bool) -> Batch:
        """Puts tensors together, with the corruptions or without."""
        fields: dict[str, Any] = {}
        if self.kind == Kind.PAIR:
            fields["itm_labels"] = torch.from_numpy(augmented.matched.astype(np.int64))
            fields["matched_rows"] = torch.from_numpy(np.flatnonzero(augmented.matched))
        if self.kind != Kind.TEXT:
            fields["pixel_values"] = augmented.views[0]
            if masks and self.image_mask is not None:
                fields |= self._image_masks(augmented, self.image_mask)
        if self.kind != Kind.IMAGE:
            lengths = np.array([len(ids) for ids in augmented.token_ids], dtype=np.int64)
            input_ids = np.concatenate(augmented.token_ids)
            fields["input_ids"] = torch.from_numpy(input_ids)
            fields["cu_seqlens"] = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            fields["max_seqlen"] = int(lengths.max())
            if masks and self.text_mask is not None:
                fields |= self._text_masks(augmented, input_ids, lengths, self.text_mask)
        keys = tuple(sample.key for sample in augmented.samples)
        return Batch(kind=self.kind, source=self.source.name, size=len(keys), keys=keys, skipped=dict(skipped or {}), **fields)

    def _image_masks(self, augmented: _Augmented, config: MaskedImageConfig) -> dict[str, Tensor]:
        """Masks patches, and provides the codes to predict or the codebook's view of the picture."""
        fields = {}
        if self.needs_codes:
            fields["codebook_pixel_values"] = augmented.views[-1]
        if self.source.image_codes_key:
            fields["image_codes"] = torch.from_numpy(np.stack([sample.codes for sample in augmented.samples]))
        mask = mask_patches(augmented.seeds, self.config.model.image.grid_size, config)
        fields["bool_masked_pos"] = torch.from_numpy(mask)
        fields["mim_rows"] = torch.from_numpy(np.flatnonzero(mask & augmented.matched[:, None]))
        return fields

    def _text_masks(self, augmented: _Augmented, input_ids: np.ndarray, lengths: np.ndarray, config: MaskedTextConfig) -> dict[str, Tensor]:
        """Masks tokens; those of mismatched texts are not predicted."""
        masked = mask_tokens(augmented.seeds, input_ids, lengths, config, self.tokenizer)
        kept = np.repeat(augmented.matched, lengths)[masked.rows]
        return {
            "input_ids_masked": torch.from_numpy(masked.input_ids),
            "mlm_rows": torch.from_numpy(masked.rows[kept]),
            "mlm_labels": torch.from_numpy(masked.labels[kept]),
        }


@dataclass(frozen=True)
class _Augmented:
    """Samples after augmentation and tokenisation, before any masking.

    Shapes:
        seeds      [b]  uint64
        matched    [b]  bool, False where the caption is borrowed
        views      each [b c H W]  uint8, the encoder's and, where it differs, the codebook's; empty without pictures
        token_ids  b arrays of int64; empty without text
    """

    samples: tuple[Sample, ...]
    seeds: np.ndarray
    matched: np.ndarray
    views: tuple[Tensor, ...]
    token_ids: tuple[Any, ...]

    def at(self, rows: np.ndarray) -> _Augmented:
        """Takes some samples: [m]."""
        index = torch.from_numpy(rows)
        samples = tuple(self.samples[row] for row in rows)
        token_ids = tuple(self.token_ids[row] for row in rows) if self.token_ids else ()
        return _Augmented(samples, self.seeds[rows], self.matched[rows], tuple(view[index] for view in self.views), token_ids)


def mismatch(
    captions: Sequence[tuple[str, ...]],
    seeds: np.ndarray,
    probability: float,
    partners: Callable[[np.ndarray, np.ndarray], Iterable[Iterable[str]]],
    *,
    among: np.ndarray | None = None,
) -> dict[int, str]:
    """Draws the samples, of the rows `among` if given, that lose their caption; row -> the first of its partners' captions that is not its own.

    A sample stays matched when all its partners' captions are also its own. `partners(rows, draws)` yields them lazily for each of the drawn rows, from
    places that the draws in [0, 1) pick.

    Shapes:
        captions  b tuples, all captions of each sample
        seeds     [b]  uint64
        among     [m]  int64
    """
    borrowed: dict[int, str] = {}
    if probability <= 0:
        return borrowed
    draws = uniforms(seeds, 2, stream=_MATCH_STREAM)
    drawn = np.flatnonzero(draws[:, 0] < probability)
    rows = drawn if among is None else np.intersect1d(drawn, among)
    for row, texts in zip(rows.tolist(), partners(rows, draws[rows, 1]), strict=True):
        other = next((text for text in texts if text not in captions[row]), None)
        if other is not None:
            borrowed[row] = other
    return borrowed
