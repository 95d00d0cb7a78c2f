"""What an objective is: the kinds of step it takes part in, the views it reads, and a loss as a sum over
counted terms.

An objective file holds everything about its objective: a frozen config that builds it, the corruption that
its batches need (run by the loader), the head, the loss and the names of its metrics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flava_ds.batch import Batch


@dataclass(frozen=True)
class Loss:
    """A sum and a count, never a mean: the mean is taken over the count of all ranks and micro-batches.

    Shapes:
        sum         scalar  fp32, with gradient
        count       int     terms of the sum, known on the host from the collator
        metrics     name -> scalar sum over the same terms (e.g. correct predictions), without gradient
        statistics  name -> sum over the same terms that a training state needs after the update (e.g. the
                    teacher's outputs, for their centre), without gradient; summed over micro-batches and
                    ranks
    """

    sum: Tensor
    count: int
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


class Rows(Protocol):
    """An encoded view, of which objectives read rows; layers.transformer.Encoded is one."""

    def rows(self, rows: Tensor) -> Tensor:
        """Returns the chosen rows of the view's output: [k] -> [k d]."""


class Model(Protocol):
    """What objectives and the task need of a family's model. A view is one encoder's output on one version of
    a batch.
    """

    def encode(
        self, batch: Batch, views: Any, reads: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Rows]:
        """Computes the union of `views` once; `reads` names the rows of each that will be read,
        sorted: [k]."""

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Row of each sequence's first token in a view's packed output: [b]."""

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        """Names of the parameters that get a gradient when `view` does."""


class Objective(nn.Module, ABC):
    """Owns its head; reads rows of encoded views; never changes the batch."""

    kinds: frozenset[str]
    needs: frozenset[str]
    """Views of the family's model."""
    metrics: ClassVar[Mapping[str, str]] = {"correct": "accuracy"}
    """Which of a Loss's metrics are logged, and as what: the mean of `correct` over the terms as
    accuracy/<objective>, that of any other as metric/<name>/<objective>."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Number of terms of this objective's sum in `batch`, known without the device."""

    @abstractmethod
    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Rows of each needed view's packed output that `forward` reads: [k]."""

    @abstractmethod
    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        """Sums the loss over the terms that `count` counts; with none of them, returns a zero that keeps the
        graph.

        Shapes:
            hidden  view -> [k d]  the rows that `reads` names, after the encoder's final LayerNorm
        """

    def flops(self, model: Any, batch: Batch) -> float:
        """Counts the forward pass of what it computes on a batch beside the family's views; 2 per
        multiply-add. The family's tasks count its own objectives' heads."""
        return 0.0

    def states(self, model: Any) -> Mapping[str, Any]:
        """Returns the training states that it keeps, by name: an EMA teacher, a queue
        (flava_ds/training/state.py).
        """
        return {}

    def model_parameters(self, model: Any) -> set[str]:
        """Names of the model's parameters that get a gradient from this objective; those that are frozen do
        not matter.
        """
        return set().union(*(model.parameters_of(view, read_directly=True) for view in self.needs))


@dataclass(frozen=True)
class Features:
    """What a pooled loss reads of one micro-batch.

    Shapes:
        samples    name -> [b ...]  one row per sample, with gradient: embeddings
        shared     name -> [...]    the same for all micro-batches, with gradient: a temperature
        constants  name -> [b ...]  one row per sample, without gradient: which captions are an image's own
    """

    samples: Mapping[str, Tensor]
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureGradients:
    """One micro-batch's part of the loss over a whole step: its gradients, and an equal share of the sums.

    Shapes:
        samples  name -> [b ...]
        shared   name -> [...]
        loss     scalar
        metrics  name -> scalar
    """

    samples: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    loss: Tensor
    metrics: Mapping[str, Tensor]


class PooledObjective(Objective):
    """An objective whose terms are not independent: every sample of a step, over all ranks, is part of each
    term.

    With gradient accumulation the samples of a step never meet in one graph. Two passes give the loss of the
    whole step all the same: first the features of every micro-batch without a graph, then the loss over all
    of them and its gradient for each feature, and then, micro-batch by micro-batch, the ordinary pass with
    sum(features * gradient) in the loss's place. The price is one more forward pass of the views that the
    features are made of.
    """

    @abstractmethod
    def features(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Features:
        """Returns what the loss needs of one micro-batch."""

    @abstractmethod
    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums the loss over the samples of all ranks, of which `features` are this rank's; with the metrics'
        sums.

        Every rank gets its own samples' share of the sum; the gradient reaches the other ranks' features.
        """

    @abstractmethod
    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int, ...]:
        """Returns the bytes that the ranks gather for one loss over `global_batch` samples, by collective."""

    def forward(
        self,
        model: Any,
        hidden: Mapping[str, Tensor],
        batch: Batch,
        gradients: FeatureGradients | None = None,
    ) -> Loss:
        """Sums the loss over all ranks' samples of this micro-step; with `gradients`, over those of the whole
        step.
        """
        ours = self.features(model, hidden, batch)
        if gradients is None:
            loss, metrics = self.pooled_loss(ours)
            return Loss(loss, self.count(batch), metrics)
        pulls = [(ours.samples[name] * gradient).sum() for name, gradient in gradients.samples.items()]
        pulls += [(ours.shared[name] * gradient).sum() for name, gradient in gradients.shared.items()]
        pulled = sum(pulls[1:], pulls[0])
        # The value is the step's loss, the gradient that of the sum of features times their gradients.
        return Loss(gradients.loss + (pulled - pulled.detach()), self.count(batch), gradients.metrics)

    @torch.enable_grad()
    def step_gradients(self, parts: Sequence[Features]) -> list[FeatureGradients]:
        """Computes the loss over all micro-batches of all ranks, and its gradients for each micro-batch of
        this rank.
        """

        def joined(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([value[name] for value in values]) for name in values[0]}

        samples = {
            name: value.detach().requires_grad_()
            for name, value in joined([p.samples for p in parts]).items()
        }
        shared = {name: value.detach().requires_grad_() for name, value in parts[0].shared.items()}
        loss, metrics = self.pooled_loss(
            Features(samples, shared, joined([part.constants for part in parts]))
        )
        found = torch.autograd.grad(loss, [*samples.values(), *shared.values()])
        own, common = found[: len(samples)], found[len(samples) :]
        share = 1 / len(parts)
        divided = {name: gradient * share for name, gradient in zip(shared, common, strict=True)}
        sizes = [next(iter(part.samples.values())).shape[0] for part in parts]
        columns = zip(*(gradient.split(sizes) for gradient in own), strict=True)
        return [
            FeatureGradients(
                dict(zip(samples, column, strict=True)),
                divided,
                loss.detach() * share,
                {name: value * share for name, value in metrics.items()},
            )
            for column in columns
        ]


class _OfAllRanks(torch.autograd.Function):
    """Gathers forward; backward, every rank gets the sum of what all ranks' losses want of its rows."""

    @staticmethod
    def forward(context: Any, local: Tensor) -> Tensor:
        gathered = local.new_empty(dist.get_world_size() * local.shape[0], *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.tensor_split(dist.get_world_size())[dist.get_rank()]


def of_all_ranks(local: Tensor) -> tuple[Tensor, int]:
    """Gathers equally many rows of every rank, with their gradient, for pooled losses; also returns the place
    of this rank's first.

    Shapes:
        local    [b ...]
        returns  [w*b ...], in the order of the ranks
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local, 0
    return _OfAllRanks.apply(local), dist.get_rank() * local.shape[0]
