"""Word-patch alignment: how cheaply do a text's words move onto an image's patches, or regions? (ViLT,
UNITER)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import Above, AtLeast, AtMost
from flava_ds.config.objectives import ObjectiveConfig, in_use
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.base import Loss, Objective
from flava_ds.objectives.itm import ImageTextMatchingConfig, MatchLabels

_AT_ONCE = 2**24
"""Entries of the transport plans that are computed at a time."""


@dataclass(frozen=True, kw_only=True)
class WordPatchAlignmentConfig(ObjectiveConfig, type="wpa"):
    """Word-patch alignment (WPA): brings words and patches, or regions, of matching pairs together, others
    apart.

    The loss is the mean over all pairs of their distance of optimal transport, negative for pairs that do not
    match.
    """

    beta: Annotated[float, Above(0), AtMost(100)] = 0.5
    """Step of the proximal point iteration; a smaller one is closer to optimal, and less stable."""
    iterations: Annotated[int, AtLeast(1), AtMost(10_000)] = 50

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "Word-patch alignment"

    def corruptions(self, config: Any, source: Any) -> tuple[MatchLabels, WordRows]:
        return MatchLabels(), WordRows()

    def build(self, config: Any) -> WordPatchAlignment:
        """Builds the objective, which has no parameters."""
        return WordPatchAlignment(self, config.model.matching_view)

    def check(self, where: str, config: Any) -> None:
        config.model.check_provides("alignment_rows", where)


def second_texts(objectives: Mapping[str, ObjectiveConfig]) -> float | None:
    """Returns how probably the second text of a pair is another sample's: as the matching objective says, or
    its default if a run omits it. None if no objective reads a second text.
    """
    readers = (ImageTextMatchingConfig, WordPatchAlignmentConfig)
    if not any(isinstance(own, readers) for own in in_use(objectives).values()):
        return None
    told = [own for own in objectives.values() if isinstance(own, ImageTextMatchingConfig)]
    return (told or [ImageTextMatchingConfig()])[0].mismatch_probability


@dataclass(frozen=True)
class WordRows:
    """Adds

    Shapes:
        wpa_rows  [k]  int64, rows of the packed matching texts, except each text's first and last
    """

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        assert draft.matching is not None  # the plan of a family with `alignment_rows` has second texts
        ids, lengths = draft.matching
        inner, ends = np.ones(len(ids), dtype=bool), np.cumsum(lengths)
        inner[ends - 1] = inner[ends - lengths] = False
        return {"wpa_rows": np.flatnonzero(inner)}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 8 * plan.max_tokens


class WordPatchAlignment(Objective):
    """Signed distances of optimal transport, cosine costs and uniform weights, over all pairs; in fp32.

    The transport plans are constants: no gradient flows through their iteration.

    Source: Chen et al. 2020, UNITER, section 3.3; Kim et al. 2021, ViLT, section 3.2, and its code.
    """

    kinds = WordPatchAlignmentConfig.kinds
    metrics: ClassVar[Mapping[str, str]] = {"distance": "distance"}

    def __init__(self, config: WordPatchAlignmentConfig, view: str):
        super().__init__(config.weight)
        self.config, self.view, self.needs = config, view, frozenset({view})

    def count(self, batch: Batch) -> int:
        return batch["itm_labels"].shape[0]

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {self.view: model.alignment_rows(self.view, batch["wpa_rows"], batch)}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        rows, labels = hidden[self.view], batch["itm_labels"]
        total = batch["wpa_rows"].shape[0]
        if total == 0:  # no text has a word
            nothing = at_least_fp32(rows).sum() * 0
            return Loss(nothing, self.count(batch), {"distance": nothing.detach()})
        words, patches = rows.split([total, rows.shape[0] - total])
        lengths = batch["matching_cu_seqlens"].diff().long() - 2
        words = padded(words, lengths, batch.numbers["matching_max_seqlen"] - 2)
        if "region_cu_seqlens" in batch:
            regions = batch["region_cu_seqlens"].diff().long()
            patches = padded(patches, regions, batch.numbers["region_max_seqlen"])
            distances = self.distances(words, patches, lengths, regions)
        else:
            distances = self.distances(words, patches.unflatten(0, (labels.shape[0], -1)), lengths)
        loss = ((2 * labels - 1) * distances).sum()
        return Loss(loss, self.count(batch), {"distance": distances.detach().sum()})

    def distances(
        self, words: Tensor, patches: Tensor, lengths: Tensor, regions: Tensor | None = None
    ) -> Tensor:
        """Returns each pair's distance: [b t d], [b n d], [b] words, [b] patches if not n each -> [b]."""
        words, patches = (F.normalize(at_least_fp32(rows), dim=-1) for rows in (words, patches))
        chunk = max(1, _AT_ONCE // (words.shape[1] * patches.shape[1]))
        found = []
        columns = [None] * -(-words.shape[0] // chunk) if regions is None else regions.split(chunk)
        for own, others, count, own_columns in zip(
            *(each.split(chunk) for each in (words, patches, lengths)), columns, strict=True
        ):
            cost = 1 - own @ others.mT
            plan = transport(cost.detach(), count, self.config.beta, self.config.iterations, own_columns)
            found.append((cost * plan).sum((1, 2)))
        return torch.cat(found)

    def flops(self, model: Any, batch: Batch) -> float:
        """Counts the costs and the iteration's two products."""
        shape, words = model.config.shape_of(self.view), batch["matching_cu_seqlens"].diff().long() - 2
        if "region_cu_seqlens" in batch:
            patches = batch["region_cu_seqlens"].diff().long()
        else:
            patches = torch.full_like(words, model.config.image.num_patches)
        return int((words * patches).sum()) * (2 * shape.hidden_size + 4 * self.config.iterations)


def padded(packed: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """Lays packed sequences side by side, other rows behind the shorter ones: [k d], [b] -> [b longest d]."""
    starts = lengths.cumsum(0) - lengths
    rows = starts[:, None] + torch.arange(longest, device=packed.device)
    return packed.index_select(0, rows.clamp(max=packed.shape[0] - 1).flatten()).unflatten(0, rows.shape)


@torch.no_grad()
def transport(
    cost: Tensor, lengths: Tensor, beta: float, iterations: int, columns: Tensor | None = None
) -> Tensor:
    """Approximates the optimal transport between words and patches, each of equal weight, by IPOT.

    Each iteration is one step of the proximal point method, solved by one round of Sinkhorn's scaling.

    Source: Xie et al. 2020, "A Fast Proximal Point Method for Computing Exact Wasserstein Distance",
    algorithm 1.

    Shapes:
        cost     [b t n]
        lengths  [b]      words of each pair; the others get nothing
        columns  [b]      patches of each pair; None for n each
        returns  [b t n]  of sum 1, or 0 for a pair without words
    """
    tiny = torch.finfo(cost.dtype).tiny
    inside = (torch.arange(cost.shape[1], device=cost.device) < lengths[:, None]).to(cost.dtype)
    # Of a pair without words all are 0, and its sums below are clamped: 0 / tiny
    word = inside / lengths.clamp(min=1)[:, None]
    near = torch.exp(-cost / beta) * inside[..., None]
    patch: float | Tensor = 1 / cost.shape[2]
    if columns is not None:
        there = (torch.arange(cost.shape[2], device=cost.device) < columns[:, None]).to(cost.dtype)
        near, patch = near * there[:, None], (there / columns[:, None])[:, None]
    plan, of_words = torch.ones_like(cost), word
    for _ in range(iterations):
        scaled = near * plan
        of_patches = patch / (of_words[:, None] @ scaled).clamp_min(tiny)
        of_words = word / (scaled @ of_patches.mT)[..., 0].clamp_min(tiny)
        plan = of_words[..., None] * scaled * of_patches
    return plan
