"""Decoded samples to one Batch: augmentation, tokenisation, packing and every corruption, drawn from the samples' own seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from flava_ds.data.transforms import ImageTransform
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

    def __call__(self, samples: Sequence[Sample], skipped: Mapping[str, int] | None = None, borrowed: Mapping[int, str] | None = None) -> Batch:
        """Collates samples, those in `borrowed` (row -> caption, see `mismatch`) with another's caption instead of their own.

        The result for one sample depends on its seed and its borrowed caption alone, never on its neighbours.
        """
        seeds = np.array([sample.seed for sample in samples], dtype=np.uint64)
        fields: dict[str, Any] = {}
        matched = np.ones(len(samples), dtype=bool)
        texts = [sample.text for sample in samples]
        if self.kind == Kind.PAIR:
            for row, text in (borrowed or {}).items():
                texts[row], matched[row] = text, False
            fields["itm_labels"] = torch.from_numpy(matched.astype(np.int64))
            fields["matched_rows"] = torch.from_numpy(np.flatnonzero(matched))
        if self.kind != Kind.TEXT:
            fields |= self._image_fields(samples, seeds, matched)
        if self.kind != Kind.IMAGE:
            fields |= self._text_fields(texts, seeds, matched)
        keys = tuple(sample.key for sample in samples)
        return Batch(kind=self.kind, source=self.source.name, size=len(samples), keys=keys, skipped=dict(skipped or {}), **fields)

    def _image_fields(self, samples: Sequence[Sample], seeds: np.ndarray, matched: np.ndarray) -> dict[str, Tensor]:
        """Augments pictures and masks patches."""
        views = self.transform([sample.image for sample in samples], seeds)
        fields = dict(zip(("pixel_values", "codebook_pixel_values"), views, strict=False))
        if self.needs_codes:
            fields.setdefault("codebook_pixel_values", fields["pixel_values"])
        if self.source.image_codes_key:
            fields["image_codes"] = torch.from_numpy(np.stack([sample.codes for sample in samples]))
        if self.image_mask is not None:
            mask = mask_patches(seeds, self.config.model.image.grid_size, self.image_mask)
            fields["bool_masked_pos"] = torch.from_numpy(mask)
            fields["mim_rows"] = torch.from_numpy(np.flatnonzero(mask & matched[:, None]))
        return fields

    def _text_fields(self, texts: Sequence[str], seeds: np.ndarray, matched: np.ndarray) -> dict[str, Any]:
        """Tokenises, packs and masks texts."""
        encoded = self.tokenizer.encode_batch(texts, self.source.max_tokens)
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        input_ids = np.concatenate(encoded)
        fields: dict[str, Any] = {
            "input_ids": torch.from_numpy(input_ids),
            "cu_seqlens": torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
            "max_seqlen": int(lengths.max()),
        }
        if self.text_mask is not None:
            masked = mask_tokens(seeds, input_ids, lengths, self.text_mask, self.tokenizer)
            kept = np.repeat(matched, lengths)[masked.rows]
            fields["input_ids_masked"] = torch.from_numpy(masked.input_ids)
            fields["mlm_rows"] = torch.from_numpy(masked.rows[kept])
            fields["mlm_labels"] = torch.from_numpy(masked.labels[kept])
        return fields


def mismatch(captions: Sequence[tuple[str, ...]], seeds: np.ndarray, probability: float, partners: Callable[[int, float], Iterable[str]]) -> dict[int, str]:
    """Draws the samples that lose their caption, and for each the first of its partners' captions that is none of its own; row -> caption.

    A sample stays matched when all its partners' captions are also its own. `partners(row, draw)` yields them lazily, from a place that
    `draw` in [0, 1) picks; it is called for drawn rows only.

    Shapes:
        captions  b tuples, all captions of each sample
        seeds     [b]  uint64
    """
    borrowed: dict[int, str] = {}
    if probability <= 0:
        return borrowed
    draws = uniforms(seeds, 2, stream=_MATCH_STREAM)
    for row in np.flatnonzero(draws[:, 0] < probability).tolist():
        other = next((text for text in partners(row, float(draws[row, 1])) if text not in captions[row]), None)
        if other is not None:
            borrowed[row] = other
    return borrowed
