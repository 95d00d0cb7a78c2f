"""A model with its objectives: everything that trainer, engine, metrics and checkpoints know of a family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config, TrainingConfig
from flava_ds.config.objectives import in_use
from flava_ds.errors import ConfigError
from flava_ds.layers.fused import FoldingLinear
from flava_ds.layers.positioned import PositionedTransformer
from flava_ds.layers.transformer import Block, Transformer
from flava_ds.layers.two_streams import CoAttentionLayer, TwoStreams
from flava_ds.objectives.balance import Balance
from flava_ds.objectives.base import (
    FeatureGradients,
    Features,
    Loss,
    Objective,
    PooledObjective,
    Rows,
    check_loss,
)
from flava_ds.objectives.state import TrainingState

Encodings = Mapping[str, Rows]
"""view -> its encoding"""
Reads = Mapping[str, Mapping[str, Tensor]]
"""objective -> view -> the rows it reads: [k]"""


@dataclass(frozen=True)
class StepOutput:
    """One micro-batch's result.

    Shapes:
        loss        scalar          fp32, with gradient
        sums        name -> scalar  "<objective>/loss" and "<objective>/<metric>", over this rank's terms
        statistics  name -> tensor  "<objective>/<name>", read by training states after the update
    """

    loss: Tensor
    sums: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """A part of the forward pass. The planner and the metrics add up their FLOPs."""

    name: str
    flops: float
    """Of the forward pass; a multiply-add counts as 2."""


TOWERS = {name: name for name in ("image_encoder", "text_encoder", "image_tower")}
TOWERS["patch_embedding"] = "image_encoder"
"""Passes that read pictures or words, and nothing that is trained before them: the parts that take them."""


def built_objectives(config: Config) -> dict[str, Objective]:
    """Builds the objectives in use. Raises: ConfigError for one that needs a view that the family lacks, or
    whose name is taken.
    """
    taken = nn.ModuleDict()
    if name := next((name for name in in_use(config.objectives) if hasattr(taken, name)), None):
        raise ConfigError(
            f"objectives: '{name}' cannot name an objective, as torch's ModuleDict has that name; rename it"
        )
    found: dict[str, Objective] = {name: own.build(config) for name, own in in_use(config.objectives).items()}
    for name, objective in found.items():
        for view in sorted(objective.needs):
            config.model.check_view(view, f"objectives.{name}")
    return found


class Task(nn.Module):
    """Encodes the views that the active objectives need, calls the objectives, and adds up their losses.

    A family subclasses it to add frozen networks that compute targets, training states and FLOPs.
    """

    model: Any
    """An nn.Module that implements objectives.base.Model."""
    objectives: Mapping[str, Objective]

    def __init__(self, model: nn.Module, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        self.model = model
        # Readers see a mapping, torch a module.
        self.objectives = nn.ModuleDict(objectives)  # type: ignore[assignment]
        self.states: dict[str, TrainingState] = {
            f"{name}.{key}": state
            for name, own in objectives.items()
            for key, state in own.states(model).items()
        }
        """The objectives' states are named "<objective>.<state>"; a family may add its own under other names.
        """
        self.frozen: dict[str, Any] = {}
        """Untrained networks on the device that compute targets; equal on all ranks."""
        self.fingerprints: dict[str, str] = {}
        """Of the frozen networks and the vocabulary as they were loaded. Checkpoints keep these alone."""

    @property
    def balance(self) -> Balance | None:
        """What decides the objectives' weights; None if they stay as configured."""
        found = self.states.get("balance")
        return found if isinstance(found, Balance) else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of step that some objective takes part in, sorted."""
        return tuple(sorted({str(kind) for own in self.objectives.values() for kind in own.kinds}))

    @property
    def metrics(self) -> dict[str, Mapping[str, str]]:
        """The logged metrics of each objective and their names in the log, in a fixed order."""
        return {name: objective.metrics for name, objective in self.objectives.items()}

    def active(self, kind: str) -> dict[str, Objective]:
        """Returns the objectives that take part in steps of `kind`."""
        return {name: objective for name, objective in self.objectives.items() if kind in objective.kinds}

    def pooled(self, kind: str) -> dict[str, PooledObjective]:
        """Returns the active objectives that need all samples of a step at once."""
        return {name: o for name, o in self.active(kind).items() if isinstance(o, PooledObjective)}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Counts the terms of each active objective's sum in `batch`, without the device."""
        return {name: objective.count(batch) for name, objective in self.active(batch.kind).items()}

    def told(self, batch: Batch, terms: Mapping[str, Any], samples: int) -> Batch:
        """Returns a batch that tells its objectives of the step that it is a part of: how many terms each has
        over all ranks and micro-batches, and how many samples. Only a loss that is not a mean over its terms
        asks for it.
        """
        return batch

    def complete(self, batch: Batch) -> Batch:
        """Adds the targets of frozen networks and training states, on the device and without a graph; in
        evaluation mode not those of states, which nothing has restored.
        """
        for state in self.states.values() if self.training else ():
            batch = state.complete(batch)
        return batch

    def forward(self, entry: str, *arguments: Any) -> Any:
        """Calls the method `entry`: "step", "features" or "losses".

        Every pass goes through forward(), because DeepSpeed's ZeRO-3 hooks, which gather sharded parameters,
        are attached there.
        """
        return getattr(self, entry)(*arguments)

    def features(self, batch: Batch) -> dict[str, Features]:
        """Computes what the pooled objectives read of a micro-batch: the first of their two passes.

        What they share is copied, as it may be a parameter itself, which ZeRO-3 empties behind this pass.
        """
        pooled = self.pooled(batch.kind)
        encoded, reads = self._encode(pooled, batch)
        found = {}
        for name, objective in pooled.items():
            features = objective.features(self.model, _hidden(encoded, reads[name]), batch)
            copies = {key: value.clone() for key, value in features.shared.items()}
            found[name] = replace(features, shared=copies)
        return found

    def step(
        self,
        batch: Batch,
        denominators: Mapping[str, Tensor],
        gradients: Mapping[str, FeatureGradients] | None = None,
    ) -> StepOutput:
        """Returns a micro-batch's part of the step's loss.

        `denominators` holds each objective's terms over all ranks and micro-batches, divided by the world
        size, since gradients are averaged over ranks. With `gradients`, the pooled objectives' losses are
        taken over the whole step.
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
        if self.balance is not None:
            statistics |= self.balance.statistics(losses)
        return StepOutput(total, sums, statistics)

    def losses(
        self,
        batch: Batch,
        gradients: Mapping[str, FeatureGradients] | None = None,
        only: Collection[str] | None = None,
    ) -> dict[str, Loss]:
        """Encodes the rows that are read of the needed views, then calls the active objectives or `only`.

        Raises: ConfigError for an objective whose loss cannot train (check_loss).
        """
        active, losses = self.active(batch.kind), {}
        if only is not None:
            active = {name: objective for name, objective in active.items() if name in only}
        encoded, reads = self._encode(active, batch)
        for name, objective in active.items():
            of_step = (gradients[name],) if gradients and name in gradients else ()
            losses[name] = objective(self.model, _hidden(encoded, reads[name]), batch, *of_step)
            check_loss(name, objective, losses[name])
        return losses

    def weighted(self, losses: Mapping[str, Loss], denominators: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns sums into this rank's shares of the weighted means."""
        weights: dict[str, Any] = {name: self.objectives[name].weight for name in losses}
        if (balance := self.balance) is not None:
            weights = dict(zip(balance.names, balance.weights(), strict=True))
        return {name: weights[name] * loss.sum / denominators[name] for name, loss in losses.items()}

    def statistics_of(self, state: str, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the statistics that a state receives after an update.

        An objective's state receives that objective's statistics by their own names, or none if it took no
        part in the step. A family's state receives all, as "<objective>/<name>".
        """
        owner = state.rpartition(".")[0]
        if owner not in self.objectives:
            return dict(totals)
        prefix = f"{owner}/"
        return {name.removeprefix(prefix): value for name, value in totals.items() if name.startswith(prefix)}

    def users(self) -> dict[str, frozenset[str]]:
        """Maps each trainable parameter to the step kinds that give it a gradient (possibly none)."""
        every = dict(self.named_parameters())
        users: dict[str, set[str]] = {name: set() for name, own in every.items() if own.requires_grad}
        for name, objective in self.objectives.items():
            used = self.used_by(name)
            if unknown := sorted(used - every.keys()):
                raise AssertionError(
                    f"objective '{name}' uses '{unknown[0]}', which is no parameter of "
                    f"{type(self.model).__name__}"
                )
            for parameter in used & users.keys():
                users[parameter] |= {str(kind) for kind in objective.kinds}
        return {name: frozenset(kinds) for name, kinds in users.items()}

    def used_by(self, name: str) -> set[str]:
        """Returns the names of the parameters that an objective's loss depends on."""
        objective = self.objectives[name]
        own = {f"objectives.{name}.{parameter}" for parameter, _ in objective.named_parameters()}
        return own | {f"model.{parameter}" for parameter in objective.model_parameters(self.model)}

    def first_steps(self) -> dict[str, int]:
        """Returns the first step that moves a parameter, for those that objectives hold still before it."""
        return {
            f"objectives.{name}.{parameter}": step
            for name, objective in self.objectives.items()
            for parameter, step in objective.first_steps().items()
        }

    def passes(self, batch: Batch) -> Iterable[Pass]:
        """Lists the work of a forward pass from lengths known to the host, without lookups, norms and losses;
        call it before the batch moves.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `passes`")

    def flops(self, batch: Batch) -> float:
        """Returns the FLOPs of a micro-batch's forward and backward passes.

        Excludes recomputation under activation checkpointing and the extra pass of pooled objectives under
        accumulation.
        """
        return sum(self.work(batch).values())

    def work(self, batch: Batch) -> dict[str, float]:
        """Returns the same by pass and objective. Backward costs twice forward: once for the weights, which
        is left out of frozen parts, and once for what lies before them, where something there is trained.
        """
        found: Counter[str] = Counter()
        for part in self.passes(batch):
            found[part.name] += self._times(part.name) * part.flops  # type: ignore[assignment]
        for name, objective in self.active(batch.kind).items():
            if own := objective.flops(self.model, batch):
                found[name] += 3 * own  # type: ignore[assignment]
        return dict(found)

    def _times(self, name: str) -> int:
        """How often a pass is computed: forward, and backward for its weights and for its inputs."""
        part = getattr(self.model, TOWERS.get(name, name), None)
        own = [*part.parameters()] if isinstance(part, nn.Module) else []
        if not own or any(parameter.requires_grad for parameter in own):
            return 3
        return 1 if name in TOWERS else 2

    def target_flops(self, batch: Batch) -> float:
        """Returns the FLOPs of the frozen networks that compute a micro-batch's targets, forward alone."""
        return 0.0

    def encoders(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trainable parameters of each encoder, for logged gradient norms.

        An encoder is a child of the model with more than one layer.
        """
        found: dict[str, list[nn.Parameter]] = {}
        for name, part in self.model.named_children():
            own = [parameter for parameter in part.parameters() if parameter.requires_grad]
            if own and any(True for _ in part.children()):
                found[name] = own
        return found

    def _encode(self, active: Mapping[str, Objective], batch: Batch) -> tuple[Encodings, Reads]:
        """Encodes the union of the needed views; computes only the rows that some objective reads."""
        reads = {name: objective.reads(self.model, batch) for name, objective in active.items()}
        rows: dict[str, list[Tensor]] = {}
        for name, own in reads.items():
            if unknown := sorted(own.keys() - active[name].needs):
                raise ConfigError(
                    f"objective '{name}' reads rows of the view '{unknown[0]}', which is not among its "
                    f"`needs`: {', '.join(sorted(active[name].needs)) or 'none'}"
                )
            for view, chosen in own.items():
                rows.setdefault(view, []).append(chosen)
        sorted_rows = {view: torch.cat(chosen).sort().values for view, chosen in rows.items()}
        return self.model.encode(batch, rows.keys(), sorted_rows), reads


def _hidden(encoded: Encodings, reads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the rows that one objective reads: view -> [k d]."""
    return {view: encoded[view].rows(rows) for view, rows in reads.items()}


def recompute_activations(module: nn.Module, training: TrainingConfig) -> None:
    """Sets what every transformer of `module` computes again: its blocks whole, or their GELU."""
    for part in module.modules():
        if isinstance(part, PositionedTransformer | TwoStreams):
            part.activation_checkpointing = training.activation_checkpointing
        elif isinstance(part, Transformer):
            part.activation_checkpointing = training.activation_checkpointing
            part.checkpoint_sums = training.checkpoint_sums
        elif isinstance(part, Block | CoAttentionLayer):
            part.recompute_gelu(training.recompute_gelu)


def fold_biases(module: nn.Module, wanted: bool) -> None:
    """Sets whether linear layers of `module` leave their biases' gradients to the operators behind them.

    Gradients are the same. It saves a GPU reading [T d] tensors again; on a CPU torch sums either way.
    """
    for part in module.modules():
        if isinstance(part, FoldingLinear):
            part.folds = wanted
