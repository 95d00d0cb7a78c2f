"""Contrastive loss against a teacher's features, of the whole step and of a queue, with soft targets.

Source: Li et al. 2021, ALBEF, sections 3.2 and 3.3, and its code; He et al. 2020, MoCo, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config.bounds import AtLeast, AtMost, Share, Steps
from flava_ds.config.objectives import ObjectiveConfig, check_single
from flava_ds.errors import ConfigError
from flava_ds.layers.transformer import clamped
from flava_ds.objectives.base import Loss, Objective, of_all_ranks, world_size
from flava_ds.objectives.state import TrainingState

if TYPE_CHECKING:
    from flava_ds.training.engine import Engine

COLDEST, HOTTEST = 0.001, 0.5
"""The bounds of the temperature."""


@dataclass(frozen=True, kw_only=True)
class MomentumContrastiveConfig(ObjectiveConfig, type="itc"):
    """Image-text contrast (ITC) with a teacher, a queue of its features, and its similarities as targets."""

    queue_size: Annotated[int, AtLeast(0), AtMost(2**24)] = 65_536
    """Pairs of earlier steps that are compared too: a multiple of the pairs of a step; 0 for none."""
    distillation: Share = 0.4
    """Share of the teacher's similarities in the targets; the rest is the pair itself."""
    distillation_steps: Steps = 0
    """Steps over which that share grows from 0 on a straight line; the first epoch as published."""

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "Image-text contrast"

    def build(self, config: Any) -> MomentumContrastive:
        """Builds the objective. Projections and temperature belong to the model: evaluation needs them."""
        told = any(source.identity_key for source in config.data.sources.values())
        return MomentumContrastive(self, identities=told)

    def check(self, where: str, config: Any) -> None:
        config.model.check_provides("teacher", where)
        both = "each have a queue, and a batch holds one's columns"
        check_single(MomentumContrastiveConfig, config.objectives, both)
        for name in config.drawn_sources:
            size = config.global_batch_size(name)
            if self.queue_size % size:
                less = self.queue_size // size * size
                raise ConfigError(
                    f"{where}.queue_size {self.queue_size} is not a multiple of the {size} pairs that each "
                    f"step of the source '{name}' replaces in the queue; take {less} or {less + size}"
                )


def grown(share: float, steps: int, step: int) -> float:
    """Returns the teacher's share in the targets at a step."""
    return share * min(1.0, step / steps) if steps else share


class MomentumContrastive(Objective):
    """Mean of both directions' cross-entropy: a sample's image against the teacher's features of all texts of
    the step and of the queue, and its text against all images. No gradient flows into the teacher's features,
    so micro-batches and ranks need no second pass. With `identities`, all columns that show the same share
    the part of the target that is the pair itself.
    """

    kinds = MomentumContrastiveConfig.kinds
    needs = frozenset({"image", "text"})

    def __init__(self, config: MomentumContrastiveConfig, *, identities: bool = False) -> None:
        super().__init__(config.weight)
        self.config, self.identities = config, identities

    def states(self, model: Any) -> dict[str, TrainingState]:
        size, width = self.config.queue_size, model.config.projection_dim
        return {"queue": FeatureQueue(size, width, identities=self.identities)}

    def count(self, batch: Batch) -> int:
        return batch.size

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return model.embedding_rows(batch)

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        share = grown(self.config.distillation, self.config.distillation_steps, batch.step)
        image, text = model.image_embeddings(hidden["image"]), model.text_embeddings(hidden["text"])
        images, texts, own = (batch[f"contrast_{name}"] for name in ("images", "texts", "own"))
        divisor, shown = clamped(model.temperature, HOTTEST, COLDEST), batch.get("contrast_identities")
        same = None if shown is None else shown[own][:, None] == shown
        of_images, correct = soft_contrast(
            image / divisor, texts, own, images / divisor.detach(), share, same
        )
        of_texts, _ = soft_contrast(text / divisor, images, own, texts / divisor.detach(), share, same)
        return Loss((of_images + of_texts) / 2, self.count(batch), {"correct": correct})

    def flops(self, model: Any, batch: Batch) -> float:
        """Counts the similarities both ways, and the teacher's, which have no backward pass, as a third."""
        columns = self.config.queue_size + batch.size
        return 2 * 2 * batch.size * columns * model.config.projection_dim * (1 + 1 / 3)

    def model_parameters(self, model: Any) -> set[str]:
        return super().model_parameters(model) | model.contrastive_parameters()


def soft_contrast(
    rows: Tensor, columns: Tensor, own: Tensor, teacher: Tensor, share: float, same: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sums -(target log softmax(rows columns^T)) over the rows; also counts the rows whose own is largest.

    A target is `share` times the softmax of the teacher's similarities, and the rest at the row's own column,
    or spread evenly over its columns of `same`; then any of these is right.

    Shapes:
        rows     [b r]    divided by the temperature
        columns  [n r]    the teacher's features of the other side
        own      [b]      each row's own column
        teacher  [n r]    the teacher's features of the rows' side, divided by the temperature
        same     [b n]    bool, at least one in each row
    """
    scores = rows @ columns.t()
    log_shares = scores.log_softmax(-1)
    if same is None:
        same = F.one_hot(own, len(columns)).bool()
        hard = log_shares.gather(1, own[:, None])
    else:
        hard = (log_shares * same).sum(1) / same.sum(1)
    loss = -(1 - share) * hard.sum()
    if share:
        with torch.no_grad():
            targets = (teacher.index_select(0, own) @ columns.t()).softmax(-1)
        loss = loss - share * (targets * log_shares).sum()
    return loss, same.gather(1, scores.detach().argmax(1, keepdim=True)).sum().float()


class FeatureQueue(TrainingState):
    """The teacher's features of the latest pairs, oldest replaced first, and those of the present step.

    Adds, from the teacher's `teacher_image` and `teacher_text` [b r] of all micro-batches and ranks:

    Shapes:
        contrast_images, contrast_texts  [g+q r]  of the step, in its order of samples, then of the queue
        contrast_own                     [b]      where the micro-batch's own samples are
        contrast_identities              [g+q]    what they show, with `identities`
    """

    def __init__(self, size: int, width: int, *, identities: bool = False) -> None:
        self.images, self.texts = (F.normalize(torch.randn(size, width), dim=-1) for _ in range(2))
        self.place = torch.zeros(1, dtype=torch.int64)
        self.identities = -1 - torch.arange(size) if identities else None  # no sample's, all different
        self._step: dict[str, Tensor] | None = None

    def tensors(self) -> dict[str, Tensor]:
        return {**self._rows(), "place": self.place}

    def _rows(self) -> dict[str, Tensor]:
        """Returns what the queue holds of each pair."""
        shown = {} if self.identities is None else {"identities": self.identities}
        return {"images": self.images, "texts": self.texts, **shown}

    def begin(self, name: str, engine: Engine) -> None:
        for field, own in self.tensors().items():
            setattr(self, field, own.to(engine.world.device))

    def complete_step(self, batches: list[Batch]) -> list[Batch]:
        if "teacher_image" not in batches[0]:
            return batches
        given = {"images": "teacher_image", "texts": "teacher_text", "identities": "identities"}
        queued = self._rows()
        self._step = {name: rows_of_step([batch[given[name]] for batch in batches]) for name in queued}
        both = {f"contrast_{name}": torch.cat([self._step[name], own]) for name, own in queued.items()}
        return [
            batch.having(contrast_own=own, **both)
            for batch, own in zip(batches, own_places(batches), strict=True)
        ]

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        if self._step is None or not len(self.images):
            return
        added = len(self._step["images"])
        rows = (self.place + torch.arange(added, device=self.place.device)) % len(self.images)
        for name, queue in self._rows().items():
            queue.index_copy_(0, rows, self._step[name])
        self.place.add_(added).remainder_(len(self.images))
        self._step = None


def rows_of_step(parts: Sequence[Tensor]) -> Tensor:
    """Gathers one tensor of each micro-batch from all ranks, in the step's order of samples: parts of [b ...]
    -> [g ...].
    """
    gathered, _ = of_all_ranks(torch.stack(list(parts)))
    # micro-step m of rank r has slice m * world + r of a step's samples (data/loader.py)
    return gathered.unflatten(0, (-1, len(parts))).transpose(0, 1).flatten(0, 2)


def own_places(batches: Sequence[Batch]) -> list[Tensor]:
    """Returns the places of each micro-batch's samples in `rows_of_step`: [b]."""
    world, rank = world_size(), dist.get_rank() if dist.is_initialized() else 0
    size, device = batches[0].size, batches[0]["cu_seqlens"].device
    own = torch.arange(size, device=device)
    return [own + (number * world + rank) * size for number in range(len(batches))]
