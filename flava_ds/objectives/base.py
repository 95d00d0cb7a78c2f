"""Objectives: the kinds of step they take part in, the views they read, and losses as sums over terms.

An objective's file holds everything about it: a frozen config that builds it, the corruption that its batches
need (run by the loader), the head, the loss and the names of its metrics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.errors import ConfigError
from flava_ds.layers.transformer import at_least_fp32


@dataclass(frozen=True)
class Loss:
    """A sum and a count, never a mean: the trainer divides by the count over all ranks and micro-batches.

    Shapes:
        sum         scalar  fp32, with gradient
        count       int     terms of the sum, known on the host from the collator
        metrics     name -> scalar sum over the same terms (e.g. correct predictions), without gradient
        statistics  name -> sum over the same terms for a training state (e.g. teacher outputs, for their
                    centre), without gradient; summed over micro-batches and ranks after the update
    """

    sum: Tensor
    count: int
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


def classified(logits: Tensor, labels: Tensor) -> Loss:
    """Sums the cross-entropy of choices between a few classes, in fp32 or better: [k z], [k]."""
    logits = at_least_fp32(logits)
    correct = (logits.detach().argmax(-1) == labels).sum().float()
    return Loss(F.cross_entropy(logits, labels, reduction="sum"), labels.shape[0], {"correct": correct})


class Rows(Protocol):
    """An encoded view whose rows objectives read; implemented by layers.transformer.Encoded."""

    def rows(self, rows: Tensor) -> Tensor:
        """Returns the chosen rows of the view's output: [k] -> [k d]."""


class Model(Protocol):
    """What objectives and the task need of a family's model.

    A view is the output of one encoder for one version of the batch.
    """

    def encode(
        self, batch: Batch, views: Any, reads: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Rows]:
        """Encodes the union of `views` once; `reads` names the rows of each to be read, sorted: [k]."""

    def first_rows(self, view: str, batch: Batch) -> Tensor:
        """Returns the row of each sequence's first token in a view's packed output: [b]."""

    def parameters_of(self, view: str, *, read_directly: bool) -> set[str]:
        """Returns the names of the parameters that get a gradient when `view` does."""


class Objective(nn.Module, ABC):
    """Owns its head and reads rows of encoded views; never changes the batch."""

    kinds: frozenset[str]
    needs: frozenset[str]
    """Views of the family's model."""
    metrics: ClassVar[Mapping[str, str]] = {"correct": "accuracy"}
    """Metrics of a Loss that are logged, and under which name.

    The mean of `correct` over the terms is logged as accuracy/<objective>, any other as
    metric/<name>/<objective>.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Returns the number of terms of the objective's sum in `batch`, without the device."""

    @abstractmethod
    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Returns the rows of each needed view's packed output that `forward` reads: [k]."""

    @abstractmethod
    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        """Sums the loss over the terms that `count` counts; without terms, returns a zero with a graph.

        Shapes:
            hidden  view -> [k d]  the rows that `reads` names, after the encoder's final LayerNorm
        """

    def flops(self, model: Any, batch: Batch) -> float:
        """Returns the FLOPs of its forward pass beyond the family's views; a multiply-add counts as 2.

        The tasks of the families count the heads of the families' own objectives.
        """
        return 0.0

    def states(self, model: Any) -> Mapping[str, Any]:
        """Returns its training states by name, e.g. an EMA teacher or a queue (objectives/state.py)."""
        return {}

    def first_steps(self) -> Mapping[str, int]:
        """Returns the first step that moves a parameter of its own, by the parameter's name, for those that
        stay put before it: without update, decay or part in the gradient's norm, in every ZeRO stage.
        """
        return {}

    def model_parameters(self, model: Any) -> set[str]:
        """Returns the names of the parameters that get a gradient from it, frozen ones possibly included."""
        return set().union(*(model.parameters_of(view, read_directly=True) for view in self.needs))


def check_loss(name: str, objective: Objective, loss: Any) -> None:
    """Looks at what an objective returns, on the host alone: nothing here waits for the device.

    Raises: ConfigError that names the objective unless it is a Loss whose sum can train something, with the
    metrics that the objective declares.
    """
    told = _named(name, objective)
    if not isinstance(loss, Loss) or not isinstance(loss.metrics, Mapping):
        found = f"the metrics {loss.metrics!r:.40}" if isinstance(loss, Loss) else _described(loss)
        raise ConfigError(f"{told} returns {found}; its forward() returns a Loss(sum, count, metrics)")
    check_sum(told, loss.sum)
    if loss.metrics.keys() != objective.metrics.keys() and (loss.count or loss.metrics):
        found, declared = (", ".join(keys) or "none" for keys in (loss.metrics, objective.metrics))
        raise ConfigError(
            f"{told} returns the metrics {found} and declares {declared}; name in its `metrics` those that "
            "it returns, which is what is logged"
        )


def check_sum(told: str, found: Any) -> None:
    """Raises ConfigError, beginning with `told`, unless a loss is a scalar tensor, with a gradient where
    gradients are computed. A batch without terms gives a zero that has one, too: of other rows times 0.
    """
    if not isinstance(found, Tensor) or found.ndim or not found.is_floating_point():
        raise ConfigError(
            f"{told} has as its loss {_described(found)}; sum its terms into a floating-point tensor of "
            "shape []"
        )
    if torch.is_grad_enabled() and not found.requires_grad:
        raise ConfigError(
            f"{told} has a loss without gradient, so it trains nothing; compute it from rows or parameters "
            "that are trained, without detach(), no_grad() or argmax in between; of a batch without terms it "
            "is rows.sum() * 0"
        )


def _named(name: str, objective: Objective) -> str:
    """Names an objective and its class."""
    return f"objective '{name}' ({type(objective).__module__}.{type(objective).__qualname__})"


def _described(found: Any) -> str:
    """Says what a value is, without reading a tensor."""
    if isinstance(found, Tensor):
        return f"a tensor of shape {list(found.shape)} and {found.dtype}"
    return f"an object of the class {type(found).__name__}"


class OfCrops(Objective):
    """Encodes crops of images itself, with the family's image encoder, and reads none of its views."""

    needs = frozenset()

    def count(self, batch: Batch) -> int:
        return batch.size

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {}

    def model_parameters(self, model: Any) -> set[str]:
        return model.parameters_of("image", read_directly=True)


@dataclass(frozen=True)
class Features:
    """What a pooled loss reads of one micro-batch.

    Shapes:
        samples    name -> [b ...]  one row per sample, with gradient, e.g. embeddings
        shared     name -> [...]    the same for all micro-batches, with gradient, e.g. a temperature
        constants  name -> [b ...]  one row per sample, without gradient, e.g. which captions match
    """

    samples: Mapping[str, Tensor]
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureGradients:
    """One micro-batch's part of a loss over the whole step: its gradients and an equal share of the sums.

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
    """An objective whose terms depend on every sample of the step, over all ranks.

    With gradient accumulation, the samples of a step never meet in one graph. Two passes still give the loss
    of the whole step. The first computes the features of every micro-batch without a graph, then the loss
    over all of them and its gradient for each feature. The second is the usual pass, micro-batch by
    micro-batch, with sum(features * gradient) in place of the loss. The cost is one more forward pass of the
    views behind the features.
    """

    @abstractmethod
    def features(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Features:
        """Returns what the loss needs of one micro-batch."""

    @abstractmethod
    def pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums the loss over the samples of all ranks, given this rank's; also returns metric sums.

        Every rank gets its own samples' share of the sum; the gradient flows to the other ranks' features.
        """

    @abstractmethod
    def exchanged_bytes(self, model: Any, global_batch: int) -> tuple[int, ...]:
        """Returns the bytes that ranks gather for one loss over `global_batch` samples, per collective; the
        scattered gradient of what `of_all_ranks` has gathered is one, too.
        """

    def forward(
        self,
        model: Any,
        hidden: Mapping[str, Tensor],
        batch: Batch,
        gradients: FeatureGradients | None = None,
    ) -> Loss:
        """Sums the loss over all ranks' samples of this micro-step, or of the whole step with `gradients`."""
        return self.pooled(self.features(model, hidden, batch), batch, gradients)

    def pooled(self, ours: Features, batch: Batch, gradients: FeatureGradients | None) -> Loss:
        """Does so from this micro-batch's features."""
        if gradients is None:
            loss, metrics = self._pooled_loss(ours)
            return Loss(loss, self.count(batch), metrics)
        pulls = [(ours.samples[name] * gradient).sum() for name, gradient in gradients.samples.items()]
        pulls += [(ours.shared[name] * gradient).sum() for name, gradient in gradients.shared.items()]
        pulled = sum(pulls[1:], pulls[0])
        # The value is the whole step's loss; the gradient is that of sum(features * gradient), because pulled
        # - pulled.detach() is zero.
        return Loss(gradients.loss + (pulled - pulled.detach()), self.count(batch), gradients.metrics)

    def _pooled_loss(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what `pooled_loss` does. Raises: ConfigError for anything but a pair."""
        found = self.pooled_loss(features)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ConfigError(
                f"{type(self).__module__}.{type(self).__qualname__} returns {_described(found)}; its "
                "pooled_loss() returns the sum and the metrics, a dict"
            )
        return found

    @torch.enable_grad()
    def step_gradients(self, name: str, parts: Sequence[Features]) -> list[FeatureGradients]:
        """Computes the loss over all micro-batches and ranks, and its gradients for each of ours.

        Raises: ConfigError with the objective's `name` for a loss that is no scalar or has no gradient.
        """

        def joined(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([value[name] for value in values]) for name in values[0]}

        own_samples = [part.samples for part in parts]
        # Leaves of a new graph: the features carry none here, and the gradient must stop at them.
        samples = {name: value.detach().requires_grad_() for name, value in joined(own_samples).items()}
        shared = {name: value.detach().requires_grad_() for name, value in parts[0].shared.items()}
        constants = joined([part.constants for part in parts])
        loss, metrics = self._pooled_loss(Features(samples, shared, constants))
        check_sum(_named(name, self), loss)
        found = torch.autograd.grad(loss, [*samples.values(), *shared.values()])
        own, common = found[: len(samples)], found[len(samples) :]
        # Shared parameters get their gradient once per step, so each micro-batch contributes an equal share.
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
    """All-gathers forward; backward, sums over the losses of all ranks the gradients of this rank's rows."""

    @staticmethod
    def forward(context: Any, local: Tensor) -> Tensor:
        gathered = local.new_empty(dist.get_world_size() * local.shape[0], *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


class _SumOfAllRanks(torch.autograd.Function):
    """Adds up over ranks, forward and backward: every rank's loss depends on the sum."""

    @staticmethod
    def forward(context: Any, local: Tensor) -> Tensor:
        total = local.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def world_size() -> int:
    """Returns the number of ranks, 1 where there is no process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_of_all_ranks(local: Tensor) -> Tensor:
    """Adds up a tensor over all ranks, with gradient."""
    if world_size() == 1:
        return local
    return _SumOfAllRanks.apply(local)


def of_all_ranks(local: Tensor) -> tuple[Tensor, int]:
    """Gathers equally many rows from every rank, with gradient; also returns where this rank's rows start.

    Shapes:
        local    [b ...]
        returns  [w*b ...], in the order of the ranks
    """
    if world_size() == 1:
        return local, 0
    return _OfAllRanks.apply(local), dist.get_rank() * local.shape[0]
