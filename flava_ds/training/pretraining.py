"""The module that the engine wraps: encode the views that the active objectives need, call them, add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flava_ds.batch import Batch, Kind, Loss, View
from flava_ds.config import Config
from flava_ds.families.flava.model import Flava, initialize
from flava_ds.layers.transformer import Encoded, Transformer
from flava_ds.objectives import Objective, build_objectives
from flava_ds.objectives.global_contrastive import FeatureGradients, Features

CONTRASTIVE = "global_contrastive"


@dataclass(frozen=True)
class StepOutput:
    """One micro-batch's result.

    Shapes:
        loss  scalar               fp32, with gradient
        sums  name -> scalar       "<objective>/loss" and "<objective>/correct", sums over this rank's terms, without gradient
    """

    loss: Tensor
    sums: dict[str, Tensor]


class PretrainingModel(nn.Module):
    """FLAVA with its objectives."""

    def __init__(self, model: Flava, objectives: nn.ModuleDict):
        super().__init__()
        self.model = model
        self.objectives = objectives

    def active(self, kind: Kind) -> dict[str, Objective]:
        """Returns the objectives that take part in steps of `kind`."""
        return {name: objective for name, objective in self.objectives.items() if kind in objective.kinds}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns the terms of each active objective's sum in `batch`, known without the device."""
        return {name: objective.count(batch.of(objective.needs)) for name, objective in self.active(batch.kind).items()}

    def losses(self, batch: Batch, gradients: FeatureGradients | None = None) -> dict[str, Loss]:
        """Runs the union of the views needed once, for the rows that are read, then every active objective.

        `gradients` makes the contrastive loss that of the whole step; without, it is that of the micro-step.
        """
        active = self.active(batch.kind)
        encoded = self._encode(active, batch)
        of_step = {} if gradients is None else {CONTRASTIVE: (gradients,)}
        return {name: objective(self.model, encoded, batch.of(objective.needs), *of_step.get(name, ())) for name, objective in active.items()}

    def _encode(self, active: dict[str, Objective], batch: Batch) -> dict[View, Encoded]:
        reads: dict[View, list[Tensor]] = {}
        for objective in active.values():
            for view, rows in objective.reads(self.model, batch.of(objective.needs)).items():
                reads.setdefault(view, []).append(rows)
        return self.model.encode(batch, reads.keys(), {view: torch.cat(rows).sort().values for view, rows in reads.items()})

    def weighted(self, losses: dict[str, Loss], denominators: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turns sums into this rank's shares of the weighted means, given each objective's count over all ranks and micro-batches."""
        return {name: self.objectives[name].weight * loss.sum / denominators[name] for name, loss in losses.items()}

    def forward(self, batch: Batch, denominators: dict[str, Tensor] | None, gradients: FeatureGradients | None = None) -> StepOutput | Features:
        """Returns a micro-batch's weighted loss; without denominators its contrastive features, the first of the two passes."""
        if denominators is None:
            objective = self.objectives[CONTRASTIVE]
            return objective.features(self.model, self._encode({CONTRASTIVE: objective}, batch), batch)
        losses = self.losses(batch, gradients)
        total = torch.stack(list(self.weighted(losses, denominators).values())).sum()
        sums = {f"{name}/loss": loss.sum.detach() for name, loss in losses.items()}
        sums |= {f"{name}/{metric}": value for name, loss in losses.items() for metric, value in loss.metrics.items()}
        return StepOutput(total, sums)

    def parameter_kinds(self) -> dict[str, frozenset[Kind]]:
        """Returns, for each trainable parameter, the step kinds that give it a gradient (an empty set when none does)."""
        kinds: dict[str, set[Kind]] = {name: set() for name, parameter in self.named_parameters() if parameter.requires_grad}
        for name, objective in self.objectives.items():
            own = {f"objectives.{name}.{parameter}" for parameter, _ in objective.named_parameters()}
            for parameter in own | {f"model.{used}" for used in objective.model_parameters(self.model)}:
                kinds[parameter] |= objective.kinds
        return {name: frozenset(used) for name, used in kinds.items()}


def build_pretraining(config: Config) -> PretrainingModel:
    """Builds the model and its objectives, initialised from config.seed whatever the global generator holds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = PretrainingModel(Flava(config.model), build_objectives(config))
        initialize(module, config.model.initializer_range)
    for part in module.modules():
        if isinstance(part, Transformer):
            part.activation_checkpointing = config.training.activation_checkpointing
    return module
