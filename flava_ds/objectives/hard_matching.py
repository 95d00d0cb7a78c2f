"""Image-text matching with hard negatives: those of the whole step that a teacher finds most alike.

Source: Li et al. 2021, ALBEF, section 3.2, and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from flava_kernels.packing import places
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import Share
from flava_ds.config.objectives import in_use
from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.errors import ConfigError
from flava_ds.objectives.itm import ImageTextMatching, ImageTextMatchingConfig
from flava_ds.objectives.momentum_contrastive import MomentumContrastiveConfig, own_places, rows_of_step
from flava_ds.objectives.state import TrainingState

_NEGATIVE_STREAM = 15
_LEAST = -1e6
"""Far below any similarity over the temperature."""


@dataclass(frozen=True, kw_only=True)
class HardMatchingConfig(ImageTextMatchingConfig, type="itm_hard"):
    """Image-text matching of each pair, of its text with another image, and of its image with another text.

    Two of three do not match, so mismatch_probability is not read.
    """

    mismatch_probability: Share = 2 / 3
    """Fixed: two of three."""

    ignores_padding: ClassVar[bool] = False

    def corruptions(self, config: Any, source: Any) -> tuple[NegativeDraws]:
        return (NegativeDraws(),)

    def build(self, config: Any) -> HardMatching:
        """Builds the objective with its classifier over the pairs' first rows."""
        view = config.model.matching_view
        return HardMatching(self, nn.Linear(config.model.shape_of(view).hidden_size, 2), view)

    def check(self, where: str, config: Any) -> None:
        config.model.check_provides("hard_negatives", where)
        if self.mismatch_probability != 2 / 3:
            raise ConfigError(f"{where}: two of three pairs never match; leave mismatch_probability out")
        if not any(isinstance(own, MomentumContrastiveConfig) for own in in_use(config.objectives).values()):
            raise ConfigError(
                f"{where} draws its negatives by the similarities of an objective of type itc; add one"
            )
        for name in config.drawn_sources:
            if config.global_batch_size(name) < 2:
                raise ConfigError(f"{where}: the source '{name}' has 1 pair a step, which has no negative")


@dataclass(frozen=True)
class NegativeDraws:
    """Adds

    Shapes:
        itm_labels      [3b]   int64, 1 for the b pairs, 0 for the 2b made of them
        negative_draws  [b 2]  float64 in [0, 1), which pick a sample's other image and its other text
    """

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        size = len(draft.seeds)
        labels = np.repeat(np.array([1, 0], dtype=np.int64), [size, 2 * size])
        return {"itm_labels": labels, "negative_draws": uniforms(draft.seeds, 2, stream=_NEGATIVE_STREAM)}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 3 * 8 + 2 * 8


class HardMatching(ImageTextMatching):
    """Two-way cross-entropy over three pairs for each sample."""

    def states(self, model: Any) -> dict[str, TrainingState]:
        return {"negatives": HardNegatives()}


class HardNegatives(TrainingState):
    """Draws, for each sample, an image for its text and a text for its image, among all samples of the step.

    The odds are the softmax of the teacher's similarities; the samples' seeds draw, so every number of ranks
    and micro-batches has the same pairs. A sample that shows the same (`contrast_identities`) is only taken
    if all do. Inputs travel, not states: the rank that needs another sample's image or text encodes it
    itself, with gradient. Adds

    Shapes:
        negative_pixel_values                    [b c H W]
        negative_input_ids, negative_cu_seqlens  [N], [b+1]
    Numbers:
        negative_max_seqlen
    """

    def complete_step(self, batches: list[Batch]) -> list[Batch]:
        if "negative_draws" not in batches[0]:
            return batches
        if batches[0]["input_ids"].is_meta:  # the planner's: no choice, but tensors of about that size
            return [with_negatives(batch, batch["pixel_values"], *_own_texts(batch)) for batch in batches]
        lengths = rows_of_step([batch["cu_seqlens"].diff().long() for batch in batches])
        pixels = rows_of_step([batch["pixel_values"] for batch in batches])
        chosen = [
            drawn(batch, own, len(lengths)) for batch, own in zip(batches, own_places(batches), strict=True)
        ]
        # Texts are packed, so their lengths decide the sizes of tensors: here the host waits, once a step.
        known = torch.cat([lengths, *(texts for _, texts in chosen)]).tolist()
        of_step, others = np.array(known[: len(lengths)]), np.array(known[len(lengths) :])
        ids = rows_of_step([_padded(batch, int(of_step.max())) for batch in batches])
        return [
            with_negatives(batch, pixels.index_select(0, images), *_packed(ids, texts, of_step[own]))
            for batch, (images, texts), own in zip(
                batches, chosen, np.split(others, len(batches)), strict=True
            )
        ]


def drawn(batch: Batch, own: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the places, in the step, of the image for each sample's text and the text for its image: [b].

    `count` samples are in the step, the micro-batch's own at the places `own` [b].
    """
    images, texts = batch["contrast_images"][:count], batch["contrast_texts"][:count]
    shown, found = batch.get("contrast_identities"), []
    same = None if shown is None else shown[own][:, None] == shown[:count]
    for rows, columns, draws in zip(
        (texts, images), (images, texts), batch["negative_draws"].unbind(1), strict=True
    ):
        scores = (rows.index_select(0, own) @ columns.t() / batch["teacher_temperature"]).double()
        scores = scores if same is None else scores.masked_fill(same, _LEAST)
        cumulated = scores.scatter(1, own[:, None], float("-inf")).softmax(-1).cumsum(-1)
        aimed = draws[:, None] * cumulated[:, -1:]
        found.append(torch.searchsorted(cumulated, aimed, right=True)[:, 0].clamp(max=count - 1))
    return found[0], found[1]


def with_negatives(batch: Batch, pixels: Tensor, ids: Tensor, bounds: Tensor, longest: int) -> Batch:
    """Adds other images and packed texts to a batch."""
    more = batch.having(negative_pixel_values=pixels, negative_input_ids=ids, negative_cu_seqlens=bounds)
    return replace(more, numbers={**batch.numbers, "negative_max_seqlen": longest})


def _own_texts(batch: Batch) -> tuple[Tensor, Tensor, int]:
    return batch["input_ids"], batch["cu_seqlens"], batch.numbers["max_seqlen"]


def _padded(batch: Batch, longest: int) -> Tensor:
    """Returns a micro-batch's ids with zeros behind the shorter texts: [b longest]."""
    ids = batch["input_ids"]
    return ids.new_zeros(batch.size, longest).index_put(places(batch["cu_seqlens"], ids.shape[0]), ids)


def _packed(ids: Tensor, chosen: Tensor, lengths: np.ndarray) -> tuple[Tensor, Tensor, int]:
    """Packs some texts of the step, of `lengths` known to the host: [g t], [b] -> [N], bounds [b+1]."""
    inside = torch.from_numpy(np.flatnonzero(np.arange(ids.shape[1]) < lengths[:, None]))
    bounds = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))
    packed = ids.index_select(0, chosen).flatten().index_select(0, inside.to(ids.device))
    return packed, bounds.to(ids.device), int(lengths.max())
