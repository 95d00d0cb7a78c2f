"""A model with its objectives: all that trainer, engine, metrics and checkpoints know of a model family."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.layers.transformer import Transformer
from flava_ds.objectives.base import FeatureGradients, Features, Loss, Objective, PooledObjective, Rows
from flava_ds.training.state import TrainingState

Encodings = Mapping[str, Rows]
"""view -> what was encoded of it"""
Reads = Mapping[str, Mapping[str, Tensor]]
"""objective -> view -> the rows it reads: [k]"""


@dataclass(frozen=True)
class StepOutput:
    """One micro-batch's result.

    Shapes:
        loss        scalar          fp32, with gradient
        sums        name -> scalar  "<objective>/loss" and "<objective>/<metric>", over this rank's terms
        statistics  name -> tensor  "<objective>/<name>", what training states read after the update
    """

    loss: Tensor
    sums: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """One stretch of work on a batch, from which its FLOPs follow: what the planner and the metrics count."""

    name: str
    flops: float
    """Of the forward pass, 2 per multiply-add."""


class Task(nn.Module):
    """Runs the union of the views that the active objectives need once, calls them, and adds up.

    A family derives from it where it has more to say: frozen networks that make targets, training states,
    FLOPs.
    """

    model: Any
    """A module that is an objectives.base.Model as well."""
    objectives: Mapping[str, Objective]

    def __init__(self, model: nn.Module, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleDict(objectives)  # type: ignore[assignment]  # a mapping to its readers, and a module to torch
        self.states: dict[str, TrainingState] = {
            f"{name}.{key}": state
            for name, own in objectives.items()
            for key, state in own.states(model).items()
        }
        """Those of the objectives are called "<objective>.<state>"; a family may add its own under other
        names.
        """
        self.frozen: dict[str, Any] = {}
        """Networks on the device that make targets and are not trained; equal on all ranks, not in
        checkpoints.
        """

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of step that an objective reads, sorted."""
        return tuple(
            sorted({str(kind) for objective in self.objectives.values() for kind in objective.kinds})
        )

    @property
    def metrics(self) -> dict[str, Mapping[str, str]]:
        """For each objective, in a fixed order, the metrics that are logged and their names in the log."""
        return {name: objective.metrics for name, objective in self.objectives.items()}

    def active(self, kind: str) -> dict[str, Objective]:
        """Returns the objectives that take part in steps of `kind`."""
        return {name: objective for name, objective in self.objectives.items() if kind in objective.kinds}

    def pooled(self, kind: str) -> dict[str, PooledObjective]:
        """Returns those that need all samples of a step at once."""
        return {name: o for name, o in self.active(kind).items() if isinstance(o, PooledObjective)}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns the terms of each active objective's sum in `batch`, known without the device."""
        return {name: objective.count(batch) for name, objective in self.active(batch.kind).items()}

    def complete(self, batch: Batch) -> Batch:
        """Adds the targets that frozen networks and training states compute, on the device and without a
        graph.
        """
        for state in self.states.values():
            batch = state.complete(batch)
        return batch

    def forward(self, entry: str, *arguments: Any) -> Any:
        """Calls the method `entry`: "step" or "features".

        Everything enters here, because DeepSpeed's hooks, which gather what ZeRO-3 has divided, hang on
        forward().
        """
        return getattr(self, entry)(*arguments)

    def features(self, batch: Batch) -> dict[str, Features]:
        """Computes what pooled objectives read of a micro-batch: the first of their two passes."""
        pooled = self.pooled(batch.kind)
        encoded, reads = self._encode(pooled, batch)
        return {
            name: o.features(self.model, _hidden(encoded, reads[name]), batch) for name, o in pooled.items()
        }

    def step(
        self,
        batch: Batch,
        denominators: Mapping[str, Tensor],
        gradients: Mapping[str, FeatureGradients] | None = None,
    ) -> StepOutput:
        """Returns a micro-batch's part of the step's loss.

        `denominators` are each objective's terms over all ranks and micro-batches, divided by the ranks, over
        which gradients are averaged. `gradients` makes the pooled objectives' loss that of the whole step.
        """
        losses = self.losses(batch, gradients)
        total = torch.stack(list(self.weighted(losses, denominators).values())).sum()
        sums = {f"{name}/loss": loss.sum.detach() for name, loss in losses.items()}
        sums |= {
            f"{name}/{metric}": value
            for name, loss in losses.items()
            for metric, value in loss.metrics.items()
        }
        statistics = {
            f"{name}/{key}": value for name, loss in losses.items() for key, value in loss.statistics.items()
        }
        return StepOutput(total, sums, statistics)

    def losses(
        self,
        batch: Batch,
        gradients: Mapping[str, FeatureGradients] | None = None,
        only: Collection[str] | None = None,
    ) -> dict[str, Loss]:
        """Runs the union of the views needed once, for the rows that are read, then every active objective,
        or those in `only`."""
        active, losses = self.active(batch.kind), {}
        if only is not None:
            active = {name: objective for name, objective in active.items() if name in only}
        encoded, reads = self._encode(active, batch)
        for name, objective in active.items():
            of_step = (gradients[name],) if gradients and name in gradients else ()
            losses[name] = objective(self.model, _hidden(encoded, reads[name]), batch, *of_step)
        return losses

    def weighted(self, losses: Mapping[str, Loss], denominators: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns sums into this rank's shares of the weighted means."""
        return {
            name: self.objectives[name].weight * loss.sum / denominators[name]
            for name, loss in losses.items()
        }

    def statistics_of(self, state: str, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns what the state of this name is told after an update: of an objective's state, that
        objective's statistics by their own names, none when it took no part; of a family's, all by
        "<objective>/<name>"."""
        owner = state.rpartition(".")[0]
        if owner not in self.objectives:
            return dict(totals)
        prefix = f"{owner}/"
        return {name.removeprefix(prefix): value for name, value in totals.items() if name.startswith(prefix)}

    def users(self) -> dict[str, frozenset[str]]:
        """Returns, for each trainable parameter, the step kinds that give it a gradient (an empty set when
        none does).
        """
        every = dict(self.named_parameters())
        users: dict[str, set[str]] = {name: set() for name, own in every.items() if own.requires_grad}
        for name, objective in self.objectives.items():
            own = {f"objectives.{name}.{parameter}" for parameter, _ in objective.named_parameters()}
            used = own | {f"model.{parameter}" for parameter in objective.model_parameters(self.model)}
            if unknown := sorted(used - every.keys()):
                raise AssertionError(
                    f"objective '{name}' uses '{unknown[0]}', which is no parameter of "
                    f"{type(self.model).__name__}"
                )
            for parameter in used & users.keys():
                users[parameter] |= {str(kind) for kind in objective.kinds}
        return {name: frozenset(kinds) for name, kinds in users.items()}

    def passes(self, batch: Batch) -> Iterable[Pass]:
        """Lists the work of a micro-batch's forward pass, from lengths that the host knows; call it before
        the batch moves.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what work a batch is")

    def flops(self, batch: Batch) -> float:
        """Returns the FLOPs of a micro-batch's forward and backward pass; a backward pass costs twice the
        forward pass.

        The extra forward pass of activation checkpointing is left out, as is that of a pooled objective under
        accumulation.
        """
        own = sum(objective.flops(self.model, batch) for objective in self.active(batch.kind).values())
        return 3 * (sum(part.flops for part in self.passes(batch)) + own)

    def encoders(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trainable parameters of each encoder, of which gradient norms are logged: of the
        model's parts that are more than one layer."""
        found: dict[str, list[nn.Parameter]] = {}
        for name, part in self.model.named_children():
            own = [parameter for parameter in part.parameters() if parameter.requires_grad]
            if own and any(True for _ in part.children()):
                found[name] = own
        return found

    def _encode(self, active: Mapping[str, Objective], batch: Batch) -> tuple[Encodings, Reads]:
        """Encodes the union of the views that objectives need, finishing only the rows that one of them
        reads.
        """
        reads = {name: objective.reads(self.model, batch) for name, objective in active.items()}
        rows: dict[str, list[Tensor]] = {}
        for own in reads.values():
            for view, chosen in own.items():
                rows.setdefault(view, []).append(chosen)
        sorted_rows = {view: torch.cat(chosen).sort().values for view, chosen in rows.items()}
        return self.model.encode(batch, rows.keys(), sorted_rows), reads


def _hidden(encoded: Encodings, reads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the rows that one objective reads: view -> [k d]."""
    return {view: encoded[view].rows(rows) for view, rows in reads.items()}


def recompute_activations(module: nn.Module, wanted: bool) -> None:
    """Has every transformer of `module` keep its blocks' inputs alone and compute the rest again in the
    backward pass.
    """
    for part in module.modules():
        if isinstance(part, Transformer):
            part.activation_checkpointing = wanted
