"""Capabilities that several families offer alike, given how each encodes its inputs.

Shapes follow flava_ds/evaluation/protocols.py, which this module does not import, since protocols are
structural.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from flava_ds.data.regions import PackedRegions, SampleRegions
from flava_ds.data.stored_regions import StoredRegions
from flava_ds.errors import ConfigError
from flava_ds.layers.ghost_norm import GhostBatchNorm
from flava_ds.layers.heads import tied_words
from flava_ds.layers.regions import PackedImages
from flava_ds.layers.transformer import Encoded
from flava_ds.objectives.itm import ImageTextMatchingConfig, prior_log_odds
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig


def names_by_type(module: Any, config: Any) -> dict[str, str]:
    """Returns the names of the objectives that a run trains, by their types; of several of one, the first."""
    return {config.objectives[name].type: name for name in reversed([*module.objectives])}


class Projector:
    """Vectors in the contrastive space, of a model that embeds rows of images and texts."""

    def __init__(self, model: Any) -> None:
        """`model` has `image_embeddings` and `text_embeddings`."""
        self.model = model

    @torch.inference_mode()
    def project_images(self, features: Tensor) -> Tensor:
        """Embeds image features, L2-normalised: [b d] -> [b r], fp32."""
        return self.model.image_embeddings(features)

    @torch.inference_mode()
    def project_texts(self, features: Tensor) -> Tensor:
        """Embeds text features, L2-normalised: [b d] -> [b r], fp32."""
        return self.model.text_embeddings(features)


class Tunable(nn.Module):
    """One state of each text, image or pair, with a graph, of copied parts of a model. Their batch norms go
    on normalising by their running moments.

    If `stored_regions` is not None, images are given as the regions that it reads.
    """

    def __init__(
        self,
        states: Callable[..., Tensor],
        *,
        width: int,
        image_size: int = 0,
        stored_regions: StoredRegions | None = None,
        **parts: nn.Module,
    ) -> None:
        """`states` gets the parts, which are submodules of their names, b arrays of ids, and images [b c H W]
        on the parts' device, their regions, or None: -> [b width].
        """
        super().__init__()
        self.states, self.width, self.image_size = states, width, image_size
        self.stored_regions = stored_regions
        for name, part in parts.items():
            self.add_module(name, part)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all but the batch norms."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, GhostBatchNorm):
                part.eval()
        return self

    def forward(
        self, texts: Sequence[np.ndarray], images: Tensor | Sequence[SampleRegions] | None = None
    ) -> Tensor:
        if isinstance(images, Tensor):
            images = images.to(next(self.parameters()).device)
        return self.states(*self.children(), texts, images)


def side_by_side(text: Tunable, image: Tunable) -> Tunable:
    """Returns an image's state beside a text's, of copies of two towers: [b d_image + d_text].

    Source: FLAVA, section 4.1: CLIP's baselines get the same head on the two vectors side by side.
    """
    of_image, [tower] = image.states, image.children()

    def states(own: Tunable, tower: nn.Module, texts: Sequence[np.ndarray], pixels: Tensor) -> Tensor:
        return torch.cat([of_image(tower, [], pixels), own(texts)], dim=1)

    width = image.width + text.width
    return Tunable(states, width=width, image_size=image.image_size, text=text, image=tower)


class PairMatcher:
    """Log odds that a pair matches, given equal prior odds."""

    def __init__(
        self,
        states: Callable[[Tensor, Sequence[Sequence[np.ndarray]]], list[Tensor]],
        head: nn.Module,
        mismatch_probability: float,
    ) -> None:
        """`states` returns what the head reads of images [b c H W] with each of several pairings: [b d]."""
        self.states, self.head, self.prior = states, head, prior_log_odds(mismatch_probability)

    @torch.inference_mode()
    def log_odds(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Scores images against one or several captions each; images are encoded or embedded once.

        Shapes:
            pixels    [b c H W]  uint8
            pairings  each b arrays of ids
            returns   one [b] fp32 for each pairing
        """
        logits = [self.head(states).float() for states in self.states(pixels, pairings)]
        return [own[:, 1] - own[:, 0] - self.prior for own in logits]


@dataclass(frozen=True)
class HeadPredictions:
    """A head's predictions at some masked positions.

    Shapes:
        hidden  [k d]
        table   ([v d],) for a tied head, or empty
    """

    hidden: Tensor
    head: Any
    table: tuple[Tensor, ...] = ()

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Returns scores over the vocabulary: [k v] fp32."""
        return self.head.logits(self.hidden, *self.table).float()

    @torch.inference_mode()
    def loss(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the summed negative log likelihood in nats and the number of correct predictions: [k]."""
        return self.head.loss(self.hidden, labels.to(self.hidden.device), *self.table)


@dataclass(frozen=True)
class WordReading:
    """One masked pass of a model that predicts words alone, to be queried at masked positions."""

    encoded: Encoded
    model: Any
    """Has `word_table`, for a tied head."""
    head: Any
    text_rows: Callable[[Tensor], Tensor] = lambda rows: rows
    """Turns rows of the concatenated texts into rows of the packed sequences."""

    @torch.inference_mode()
    def tokens(self, rows: Tensor) -> HeadPredictions:
        """Predicts tokens; `rows` index the concatenated texts: [k]."""
        rows = self.text_rows(rows.to(self.encoded.packed.hidden.device))
        return HeadPredictions(self.encoded.rows(rows), self.head, tied_words(self.head, self.model))

    def codes(self, rows: Tensor) -> HeadPredictions:
        """Raises ValueError: such a model predicts no image codes."""
        raise ValueError(f"{type(self.model).__name__} predicts no image codes")


class PairScorer:
    """Likelihoods of masked tokens of a pair."""

    predicts = frozenset({"text of a pair"})

    def __init__(self, read: Callable[[Tensor, Sequence[np.ndarray]], WordReading]) -> None:
        """`read` encodes images [b c H W] with b arrays of ids."""
        self.read_pairs = read

    @torch.inference_mode()
    def read(
        self,
        texts: Sequence[np.ndarray] | None = None,
        pixels: Tensor | None = None,
        patches: Tensor | None = None,
    ) -> WordReading:
        """Encodes images with masked texts once: b arrays of ids, [b c H W] uint8."""
        if texts is None or pixels is None:
            raise ValueError("this model predicts words of a text with its image; give both")
        if patches is not None and patches.any():
            raise ValueError("this model masks no patches; give none")
        return self.read_pairs(pixels, texts)


def for_pairs(
    module: Any,
    config: Any,
    matching: type[ImageTextMatchingConfig],
    states: Callable[[Tensor, Sequence[Sequence[np.ndarray]]], list[Tensor]],
    read: Callable[[Any, Tensor, Sequence[np.ndarray]], WordReading],
) -> tuple[list[object], dict[str, str]]:
    """Returns a matcher and a scorer as far as a run trains their heads, and why it lacks the others.

    `matching` is the configuration of the objective with the matching head, which reads `states`; `read` gets
    the head of masked words first.
    """
    found: dict[str, object] = {}
    for name, objective in module.objectives.items():
        told = config.objectives[name]
        if isinstance(told, matching):
            found["Matcher"] = PairMatcher(states, objective.head, told.mismatch_probability)
        elif isinstance(told, MultimodalMaskedTextConfig):
            found["Scorer"] = PairScorer(partial(read, objective.head))
    reasons = {
        "Matcher": f"the run trains no objective of type {matching.type}, so it has no matching head",
        "Scorer": "the run trains no masked objective",
    }
    return list(found.values()), {name: why for name, why in reasons.items() if name not in found}


_BLIND = (
    "it reads regions of images and has no detector to find them; give its weights as model.detector, or to "
    "this evaluation with --regions"
)
NO_DETECTOR = dict.fromkeys(("Matcher", "Scorer"), _BLIND) | {
    "PairStates": f"{_BLIND}, or there a folder of regions that were found before"
}
"""What a model that reads regions lacks without a detector: protocol -> reason."""
STORED_ALONE = dict.fromkeys(
    ("Matcher", "Scorer"),
    "with stored regions it can only be fine-tuned; give a detector's weights with --regions",
)
"""What a model lacks whose regions were found before: protocol -> reason."""


def stored_regions_of(model: Any) -> StoredRegions | None:
    """Returns the stored regions that a model's detector names, or None if it names weights.

    Raises: DataError for a folder that holds none.
    """
    folder = Path(model.detector)
    if not folder.is_dir():
        return None
    size, whole = model.regions.feature_size, model.reads_whole_image
    return StoredRegions(folder, feature_size=size, whole=whole)


def detector_of(model: Any, device: torch.device) -> Any:
    """Loads the detector of a model that reads regions, frozen, or what stands in its place when regions are
    stored.

    Raises: CheckpointError when it cannot be loaded, DataError for regions that cannot be read, ConfigError
    when the model reads features of another width than the detector gives.
    """
    if (stored := stored_regions_of(model)) is not None:
        return FoundBefore(stored)
    from flava_ds.regions.detector import load_detector

    detector = load_detector(model.detector)
    given, read = detector.config.feature_size, model.regions.feature_size
    if given != read:
        raise ConfigError(
            f"model.detector '{model.detector}' gives features of width {given}, and the model reads {read} "
            "(model.image.feature_size); name the detector whose regions it was trained on"
        )
    return detector.to(device)


def fingerprint_of_regions(model: Any) -> str:
    """Hashes all that determines the regions of an image. Raises: as `detector_of`."""
    if (stored := stored_regions_of(model)) is not None:
        return stored.fingerprint
    from flava_ds.regions.detector import load_detector

    return load_detector(model.detector).fingerprint()


def images_of(regions: Any, device: torch.device) -> PackedImages:
    """Returns what a detector found (flava_ds/regions) as a model on `device` reads it."""
    return PackedImages(
        regions.features.to(device),
        regions.boxes.to(device),
        regions.cu_seqlens.to(device),
        regions.max_seqlen,
    )


@dataclass(frozen=True)
class TaggedImages(PackedImages):
    """The regions of several images, with the tags of each."""

    tags: tuple[str, ...] = ()


class FoundBefore:
    """Stands in a detector's place: takes the stored regions of images instead of their pixels."""

    def __init__(self, stored: StoredRegions) -> None:
        self.stored = stored

    def __call__(self, regions: Sequence[SampleRegions]) -> TaggedImages:
        """Packs the regions of several images."""
        packed = PackedRegions.of(regions, classes=False)
        bounds = np.concatenate([[0], packed.lengths.cumsum()]).astype(np.int32)
        features, boxes, cu_seqlens = map(torch.from_numpy, (packed.features, packed.boxes, bounds))
        tags = tuple(own.tags for own in regions)
        return TaggedImages(features.float(), boxes, cu_seqlens, int(packed.lengths.max()), tags=tags)

    def tags(self, regions: TaggedImages) -> list[str]:
        """Returns the tags that were stored with each image's regions."""
        return list(regions.tags)


def tunable_pairs(part: Any, scale: float) -> Tunable:
    """Returns a copy of a model that reads regions, for images `scale` times as large: the pooled state of
    each text with its image. The detector stays as it is.

    `part` runs its `model` on images and texts, and its `pooled` returns what is fine-tuned.
    """
    config, model = part.model.config, copy.deepcopy(part.model)
    read = model.pooler_parameters().union(
        *(model.parameters_of(view, read_directly=True) for view in config.pooled_views)
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in read)

    def states(model: nn.Module, texts: Sequence[np.ndarray], images: Any) -> Tensor:
        own = copy.copy(part)
        own.model = model
        return own.pooled(images, [texts])[0]

    return Tunable(
        states,
        width=config.pooled_size,
        image_size=round(scale * config.image_size),
        stored_regions=part.detector.stored if isinstance(part.detector, FoundBefore) else None,
        model=model,
    )
