"""A model under evaluation: its capabilities, and cached features that several tasks share."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.errors import DataError, UserError
from flava_ds.evaluation.feature_cache import PART_BATCHES, FeatureCache
from flava_ds.evaluation.labelled import Seen
from flava_ds.evaluation.protocols import (
    CAPABILITIES,
    OF_FILES,
    OF_PICTURES,
    SPECIAL,
    Embedder,
    ImageFeatures,
    Matcher,
    Progress,
    TextFeatures,
)
from flava_ds.evaluation.shares import Share
from flava_ds.storage import parallel
from flava_ds.storage.parallel import Given, Made

BATCH_ROWS = 128
"""Images or texts encoded at a time."""
DECODED_AHEAD = 4
"""Batches decoded ahead of the model, at most."""
MOST_THREADS = 8

Capability = TypeVar("Capability")


class Lacking(UserError):
    """The model lacks a capability that a task needs."""


class Pictures(Protocol, Hashable):
    """Images as the model sees them; equal ones are encoded once."""

    def __len__(self) -> int: ...

    def batch(self, rows: range, size: int) -> Tensor:
        """Returns preprocessed images: [k 3 size size] uint8."""


@dataclass(frozen=True)
class Described:
    """Identifies the evaluated model."""

    name: str
    family: str
    step: int | None = None
    """None if the model is not a checkpoint of a run."""
    average: str | None = None
    """The training state whose running average its weights are; None for the weights themselves."""


@dataclass(frozen=True)
class Workplace:
    """Where a long task saves its state, and who is told of its progress."""

    states: Path | None = None
    """None: an interrupted task starts again."""
    tell: Progress = lambda _: None
    keep_weights: bool = False
    """Whether the weights that a task reports are kept there, too."""
    read_again: set[str] = field(default_factory=set)
    """Tasks that had finished before, whose numbers were read there."""


class FrozenModel:
    """A model's capabilities, with its tokenizer and sizes. Encodes whole sets in batches, each set once.

    Create a new instance after every update of the weights.
    """

    def __init__(
        self,
        described: Described,
        offers: tuple[Sequence[object], Mapping[str, str]],
        tokenizer: WordPieceTokenizer | str,
        *,
        image_size: int,
        most_tokens: Mapping[str, int],
        device: torch.device,
        share: Share | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        """`offers` holds the family's capability objects, and the reasons for those it lacks. Without a
        vocabulary, `tokenizer` says why there is none, and what reads texts is refused.

        `most_tokens` is the text length for a 'pair' (caption, prompt) and a 'text'; `share` splits work over
        ranks; `cache` keeps image features on disk.
        """
        self.described, self._tokenizer = described, tokenizer
        self.image_size, self.most_tokens, self.device = image_size, most_tokens, device
        self._parts, self._reasons = offers
        self.share, self._cache, self.workplace = share or Share(), cache, Workplace()
        self._images: dict[Pictures, Tensor] = {}
        self._texts: dict[tuple[tuple[str, ...], int], Tensor] = {}

    @property
    def tokenizer(self) -> WordPieceTokenizer:
        """Returns the tokenizer of its texts. Raises: Lacking if it has no vocabulary."""
        if isinstance(self._tokenizer, str):
            raise Lacking(f"{self.described.name} reads no texts: {self._tokenizer}")
        return self._tokenizer

    @property
    def words(self) -> str:
        """Identifies the vocabulary; empty if there is none."""
        return "" if isinstance(self._tokenizer, str) else self._tokenizer.fingerprint()

    def at(self, workplace: Workplace) -> Self:
        """Sets where long tasks save their states and report progress; returns itself."""
        self.workplace = workplace
        return self

    def offered(self, capability: type[Capability]) -> Capability | None:
        """Returns the object that implements a capability, if there is one."""
        return next((part for part in self._parts if isinstance(part, capability)), None)

    def need(
        self, capability: type[Capability], asked_by: str, *, pictures_alone: bool = False
    ) -> Capability:
        """Returns the object that implements a capability. Of some that read texts, too, only the part for
        `pictures_alone` may be asked for.

        Raises: Lacking, naming the capability, the task that needs it, and the family.
        """
        part, name, described = self.offered(capability), capability.__name__, self.described
        reason = self._reasons.get(name, f"models of family '{described.family}' have none")
        reads_texts = not (pictures_alone or capability in OF_PICTURES)
        if part is not None and reads_texts and isinstance(self._tokenizer, str):
            part, reason = None, self._tokenizer
        if part is not None:
            return part
        about = (CAPABILITIES | SPECIAL | OF_FILES).get(capability, "a capability of your own")
        raise Lacking(
            f"{asked_by} needs {name} ({about}), which {described.name} (family "
            f"'{described.family}') does not offer: {reason}"
        )

    def image_features(self, pictures: Pictures, asked_by: str) -> Tensor:
        """Encodes a set of images: [N d], in the model's dtype, on its device.

        Raises: DataError for features that are no numbers; Lacking.
        """
        encode = self.need(ImageFeatures, asked_by).image_features
        if pictures not in self._images:
            step = self._part_batches(pictures) * BATCH_ROWS
            parts = [
                self._part(pictures, encode, number, range(start, min(start + step, len(pictures))))
                for number, start in enumerate(range(0, len(pictures), step))
            ]
            self._images[pictures] = torch.cat(parts)
        return self._images[pictures]

    def _part_batches(self, pictures: Pictures) -> int:
        """Returns how many batches ranks encode before they exchange them: those of a file if the cache keeps
        them, otherwise enough that every rank has some to decode ahead.
        """
        if self._cache is not None and isinstance(pictures, Seen):
            return PART_BATCHES
        return max(PART_BATCHES, DECODED_AHEAD * self.share.parts)

    def _part(
        self, pictures: Pictures, encode: Callable[[Tensor], Tensor], number: int, rows: range
    ) -> Tensor:
        """Encodes some of a set's pictures, or reads what was encoded before: [len(rows) d]."""

        def encoded() -> Tensor:
            starts = rows[::BATCH_ROWS]
            mine = [range(start, min(start + BATCH_ROWS, rows.stop)) for start in self.share.mine(starts)]
            batches = ahead(lambda batch: pictures.batch(batch, self.image_size), mine)
            return self._encode(starts, (encode(pixels.to(self.device)) for pixels in batches))

        if self._cache is None or not isinstance(pictures, Seen):
            return encoded()
        found = self._cache.part(pictures, self.image_size, number, rows, encoded, self.share)
        return found.to(self.device)

    def text_features(self, texts: Sequence[str], asked_by: str, kind: str = "text") -> Tensor:
        """Encodes texts, truncated for their kind: [len(texts) d], in the model's dtype, on its device."""
        encode = self.need(TextFeatures, asked_by).text_features
        key = (tuple(texts), self.most_tokens[kind])
        if key not in self._texts:
            ids = self.tokenizer.encode_batch(texts, self.most_tokens[kind])
            starts = range(0, len(ids), BATCH_ROWS)
            mine = self.share.mine(starts)
            self._texts[key] = self._encode(
                starts, (encode(ids[start : start + BATCH_ROWS]) for start in mine)
            )
        return self._texts[key]

    def image_embeddings(self, pictures: Pictures, asked_by: str) -> Tensor:
        """Encodes a set of images into the space shared with texts, L2-normalised in fp32: [N r]."""
        embedder = self.need(Embedder, asked_by, pictures_alone=True)
        features = self.image_features(pictures, asked_by)
        return torch.cat([embedder.project_images(rows).float() for rows in features.split(BATCH_ROWS)])

    def text_embeddings(self, texts: Sequence[str], asked_by: str) -> Tensor:
        """Encodes captions or prompts into the space shared with images: [N r], L2-normalised, fp32."""
        embedder = self.need(Embedder, asked_by)
        features = self.text_features(texts, asked_by, "pair")
        return torch.cat([embedder.project_texts(rows).float() for rows in features.split(BATCH_ROWS)])

    def log_odds(self, pictures: Pictures, pairings: Sequence[Sequence[np.ndarray]], asked_by: str) -> Tensor:
        """Scores how well images and texts fit, a column for each pairing: [N len(pairings)] fp32.

        Shapes:
            pairings  each N arrays of ids, of the text that each image is read with
        Raises: DataError for scores that are no numbers; Lacking.
        """
        matcher = self.need(Matcher, asked_by)
        starts = range(0, len(pictures), BATCH_ROWS)

        def scored(start: int) -> Tensor:
            rows = range(start, min(start + BATCH_ROWS, len(pictures)))
            texts = [texts[start : rows.stop] for texts in pairings]
            odds = matcher.log_odds(pictures.batch(rows, self.image_size).to(self.device), texts)
            return torch.stack(odds, dim=1).float()

        return self._encode(starts, map(scored, self.share.mine(starts)))

    def _encode(self, starts: range, mine: Iterator[Tensor]) -> Tensor:
        """Encodes this rank's batches and joins those of all ranks in the set's order.

        Raises: DataError, on all ranks, when they are no numbers: every score of them would mean nothing, and
        all of a class would tie for the first place.
        """
        found = torch.cat([part.to(self.device) for part in self.share.join(starts, mine)])
        if wrong := int((~found.isfinite().all(1)).sum()):
            raise DataError(
                f"{self.described.name}: {wrong} of {len(found)} features or scores hold infinities or "
                "no numbers; the model has diverged or is damaged, so take an earlier checkpoint"
            )
        return found


def ahead(make: Callable[[Given], Made], given: Sequence[Given]) -> Iterator[Made]:
    """Yields `make` of each entry in order, computed ahead by threads."""
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    return parallel.ahead(make, given, threads=threads, most=min(threads, DECODED_AHEAD))
