"""Measures the gradients that a balance of objectives asks for, before the step that they decide on."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from flava_ds.objectives.gradnorm import GradNorm
from flava_ds.training.engine import Engine
from flava_ds.training.watcher import Update, Watcher


class BalanceNorms(Watcher):
    """Gives GradNorm each objective's gradient norm on the layers that they share.

    Unlike the norms in the log, these decide over training: they are of all ranks' micro-batches, and their
    time counts.
    """

    def __init__(self, engine: Engine) -> None:
        """Never measures unless the task's balance is GradNorm."""
        self.engine = engine
        found = engine.module.states.get("balance")
        self.balance = found if isinstance(found, GradNorm) else None

    def before_update(self, update: Update) -> None:
        if self.balance is None:
            return
        layers = self.balance.measured_layers(update.step, update.kind)
        if layers:
            named = dict(self.engine.module.named_parameters())
            self.balance.norms = self.measure(update, [named[name] for name in layers])

    def measure(self, update: Update, layers: list[torch.nn.Parameter]) -> Tensor:
        """Returns the norm of each objective's gradient on `layers`, of its mean loss over all ranks and
        micro-batches, without its weight: [n] in the balance's order.

        Gradients are weighted and carry the loss scale until they are fp32, as the step's own do: fp16 would
        lose them.
        """
        assert self.balance is not None  # before_update asks first
        device, names = self.engine.world.device, list(update.denominators)
        ranks = self.engine.world.size
        terms = {name: own * ranks for name, own in update.denominators.items()}
        samples = ranks * sum(batch.size for batch in update.batches)
        weights = dict(zip(self.balance.names, self.balance.weights(), strict=True))
        scales = [weights[name] * self.engine.loss_scale for name in names]
        sums = torch.zeros(len(names), sum(layer.numel() for layer in layers), device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for batch, part in zip(update.batches, update.gradients, strict=True):
                told = self.engine.module.told(batch, terms, samples)
                losses = self.engine.module("losses", told, part)
                for name, scale, total in zip(names, scales, sums, strict=True):
                    mean = losses[name].sum / update.denominators[name]
                    found = torch.autograd.grad(
                        mean * scale, layers, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                    total += torch.cat([gradient.flatten().float() for gradient in found])
        if ranks > 1:
            dist.all_reduce(sums)
            sums /= ranks
        found_norms = torch.linalg.vector_norm(sums, dim=1) / torch.stack(scales)
        norms = dict(zip(names, found_norms, strict=True))
        zero = torch.zeros((), device=device)
        return torch.stack([norms.get(name, zero) for name in self.balance.names])
