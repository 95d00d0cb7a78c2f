"""The contents of batches: a family writes a plan for each source, and the collator carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from flava_ds.data.batch_tokenizer import BatchTokenizer
    from flava_ds.data.samples import Sample

from flava_ds.config import ImageTransformConfig
from flava_ds.config.objectives import targets_of
from flava_ds.data.regions import PackedRegions, packed_at
from flava_ds.data.targets import PackedTargets

SENT_VIEW = "pixel_values"
"""The one of a plan's views that batches hold."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The samples of one batch after augmentation and tokenisation, before any corruption.

    Shapes:
        seeds      [b]        uint64, one per sample, from (seed, source, epoch, sample)
        matched    [b]        bool, False where the caption is another sample's
        views      name -> [b c S S]  uint8, the image at each size of the plan; [b a c S S] for crops
        codes      [b n]      int64 codebook indices stored with the samples, or None
        regions    of b samples, packed; None for plans without
        targets    of b samples, packed; None for plans without
        input_ids  [T]        int64, packed; None without text
        lengths    [b]        tokens of each text; None without text
        identities [b]        int64, what the images show; None for plans without
        own_tags   [b]        bool, False where the tags are another sample's; None for plans without tags
        matching   [M], [b]   the same two of the texts that may be another sample's, if `input_ids` holds the
                              sample's own in any case (BatchPlan.matches_apart); None otherwise
    """

    seeds: np.ndarray
    matched: np.ndarray
    views: Mapping[str, Tensor] = field(default_factory=dict)
    codes: np.ndarray | None = None
    regions: PackedRegions | None = None
    targets: PackedTargets | None = None
    input_ids: np.ndarray | None = None
    lengths: np.ndarray | None = None
    identities: np.ndarray | None = None
    own_tags: np.ndarray | None = None
    matching: tuple[np.ndarray, np.ndarray] | None = None

    def at(self, rows: np.ndarray) -> Draft:
        """Returns the draft of some samples: [m] rows."""
        index = torch.from_numpy(rows)
        ids, lengths = None, None
        if self.lengths is not None:
            assert self.input_ids is not None  # lengths come with tokens
            ids, lengths = _texts_at(rows, self.input_ids, self.lengths)
        return Draft(
            seeds=self.seeds[rows],
            matched=self.matched[rows],
            views={name: view[index] for name, view in self.views.items()},
            codes=None if self.codes is None else self.codes[rows],
            regions=None if self.regions is None else self.regions.at(rows),
            targets=None if self.targets is None else self.targets.at(rows),
            input_ids=ids,
            lengths=lengths,
            identities=None if self.identities is None else self.identities[rows],
            own_tags=None if self.own_tags is None else self.own_tags[rows],
            matching=None if self.matching is None else _texts_at(rows, *self.matching),
        )


def _texts_at(rows: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns some of the packed texts, and their lengths: [m] sorted rows, [T], [b]."""
    return ids[packed_at(rows, lengths)], lengths[rows]


class Tokenizer(Protocol):
    """Converts texts to ids; picklable."""

    vocab_size: int
    file: Any
    """The file with the vocabulary, for messages."""

    def encode_counting(self, texts: Sequence[str], max_tokens: int) -> tuple[list[np.ndarray], int]:
        """Returns each text's ids, special tokens included, cut to `max_tokens`; and the number cut."""

    def fingerprint(self) -> str:
        """Hashes what texts are read with, so that a run does not go on with another vocabulary."""


class Corruption(Protocol):
    """Adds named tensors to a batch: masks, labels, targets. Runs in dataloader workers, so it is picklable.

    The result for a sample depends only on its seed, never on its neighbours, ranks or workers.
    """

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray | Tensor]:
        """Returns new tensors for the batch."""

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        """Returns an upper bound of one sample's share of these tensors, in bytes."""


class Composer(Protocol):
    """Makes each text of the batch, of two segments, from the sample's own and, where drawn, another's.

    Runs in dataloader workers, so it is picklable. The result for a sample depends only on the sample, its
    seed and the other's text.
    """

    @property
    def tokenizer(self) -> BatchTokenizer:
        """The tokenizer, whose first and last tokens mark texts and segments."""

    def __call__(
        self, samples: Sequence[Sample], borrowed: Mapping[int, str], max_tokens: int
    ) -> tuple[list[np.ndarray], int]:
        """Returns each sample's ids, special tokens included, at most `max_tokens`; and the number cut.

        `borrowed` maps a row to another sample's text.
        """


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Several crops of each image, one for each transform, drawn independently of each other and of the
    source's own transform.
    """

    size: int
    """The edge, in pixels."""
    transforms: tuple[ImageTransformConfig, ...]

    @property
    def bytes_per_sample(self) -> int:
        """What they take in a batch."""
        return 3 * self.size**2 * len(self.transforms)


@dataclass(frozen=True, kw_only=True)
class RegionsPlan:
    """What a batch holds of each sample's regions."""

    feature_size: int
    most: int
    """Maximum regions of a sample."""
    num_classes: int = 0
    """Classes of a region, if batches hold the detector's probabilities of them; otherwise 0."""

    @classmethod
    def of(cls, config: Any, source: Any) -> RegionsPlan:
        """Returns what the model of a Config reads of the samples of `source`, a SourceConfig."""
        regions = config.model.regions
        classes = regions.num_classes if config.predicts_region_classes else 0
        return cls(feature_size=regions.feature_size, most=source.max_regions, num_classes=classes)

    @property
    def bytes_per_sample(self) -> int:
        """The most that they take in a batch."""
        return 4 * self.most * (self.feature_size + 4 + self.num_classes)


@dataclass(frozen=True, kw_only=True)
class TargetsPlan:
    """What a batch holds of each sample's labels."""

    num_classes: int
    most: int
    """Maximum labels of a sample."""
    boxes: bool = False
    """Whether each label has a box."""
    num_attributes: int = 0
    """Classes of what is said of each object besides; 0 for nothing."""
    most_attributes: int = 0

    @classmethod
    def of(cls, config: Any, source: Any) -> TargetsPlan | None:
        """Returns what objectives of a Config read of the labels of `source`, a SourceConfig; None if none
        reads them.
        """
        own = targets_of(config.objectives, source.step_kind)
        if own is None:
            return None
        described = getattr(own, "num_attributes", 0)
        return cls(
            num_classes=own.num_classes,
            most=source.max_targets,
            boxes=own.targets == "boxes",
            num_attributes=described,
            most_attributes=own.max_attributes if described else 0,
        )

    @property
    def bytes_per_sample(self) -> int:
        """The most that they take in a batch."""
        return self.most * (8 + 4 + 16 * self.boxes + 8 * self.most_attributes)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """All that the collator needs to know about the batches of one source."""

    kind: str
    views: Mapping[str, int] = field(default_factory=dict)
    """Square images rendered from the same crop: tensor name -> edge in pixels, `pixel_values` first, which
    alone is part of every batch; the others are only there for corruptions.
    """
    crops: Mapping[str, Crops] = field(default_factory=dict)
    """Tensor name -> the crops in it: [b a c S S] uint8, part of every batch."""
    tokenizer: Tokenizer | None = None
    """None for batches without text."""
    max_tokens: int = 0
    """Maximum length of a text, special tokens included."""
    mismatch_probability: float = 0.0
    """Probability that a sample's caption is replaced by another sample's."""
    wrong_tags_probability: float = 0.0
    """Probability that a sample's caption stays and the tags of its regions are another sample's."""
    matches_apart: bool = False
    """Whether a text that replaces a sample's own does so in a second text of each sample, `matching_`
    input_ids, and input_ids holds the sample's own in any case.
    """
    composer: Composer | None = None
    """Combines a sample's text with the one that replaces it otherwise; None: the tokenizer alone."""
    masked_share: float = 1.0
    """Share of the samples that the corruptions see."""
    corruptions: tuple[Corruption, ...] = ()
    identities: bool = False
    """Whether batches tell what the images show (SourceConfig.identity_key)."""
    sample_seeds: bool = False
    """Whether batches have the samples' seeds, for what a model draws from them on the device."""
    stored_codes: int = 0
    """Codes per sample stored in the shards; 0 for none."""
    regions: RegionsPlan | None = None
    """The regions of each image, in place of its views; None for none."""
    targets: TargetsPlan | None = None
    """The labels of each sample; None for none."""
    pad_to_multiple_of: int = 0
    """The lengths of packed texts and lists of rows are multiples of it; 0 pads nothing."""

    def bytes_per_sample(self) -> int:
        """Returns an upper bound of one sample's bytes, without padding and without tensors that have one
        entry per sample.
        """
        sent = 3 * self.views.get(SENT_VIEW, 0) ** 2
        sent += sum(crops.bytes_per_sample for crops in self.crops.values())
        sent += sum(own.bytes_per_sample for own in (self.regions, self.targets) if own is not None)
        corrupted = sum(corruption.bytes_per_sample(self) for corruption in self.corruptions)
        return (
            sent
            + (1 + self.matches_apart) * 8 * self.max_tokens
            + int(np.ceil(self.masked_share * corrupted))
        )
