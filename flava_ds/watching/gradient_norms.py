"""Gradient norms of single objectives on each encoder, measured without affecting the update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from flava_ds.ranks.distributed import log
from flava_ds.training.engine import Engine
from flava_ds.training.norms import squared_norm
from flava_ds.training.watcher import Update, Watcher
from flava_ds.watching.metrics import Metrics


class GradientNorms(Watcher):
    """Measures the first step of each kind in every window of `every` steps, so rare kinds are included."""

    option: ClassVar[str] = "logging.objective_gradient_norms_every"

    def __init__(self, engine: Engine, every: int, metrics: Metrics) -> None:
        """Never measures if `every` is 0, or with ZeRO-3, which keeps no full gradients (warns once)."""
        self.engine, self.every, self.metrics = engine, every, metrics
        self._window = -1
        self._seen: set[str] = set()
        if every and engine.stage == 3:
            self.every = 0
            if engine.world.is_main:
                log.warning(
                    f"{self.option} is ignored: ZeRO-3 keeps no full gradients; use ZeRO 0, 1 or 2 to "
                    "measure them"
                )

    def due(self, step: int, kind: str) -> bool:
        """Returns True if `step`, of `kind`, is to be measured. Call it once per step."""
        if not self.every:
            return False
        if step // self.every != self._window:
            self._window, self._seen = step // self.every, set()
        new = kind not in self._seen
        self._seen.add(kind)
        return new

    def before_update(self, update: Update) -> None:
        if self.due(update.step, update.kind):
            with self.metrics.paused():
                self.metrics.add_gradient_norms(self.measure(update))

    def measure(self, update: Update) -> dict[str, Tensor]:
        """Returns each objective's gradient norm, on all encoders and on each, by log field."""
        found = {}
        for objective, gradients in self.gradients(update):
            squares = {encoder: squared_norm([*own.values()]) for encoder, own in gradients.items()}
            total = sum(squares.values(), torch.zeros((), device=self.engine.world.device))
            found[f"gradient_norm/{objective}"] = total.sqrt() / self.engine.loss_scale
            found |= {
                f"encoder_gradient_norm/{objective}/{encoder}": square.sqrt() / self.engine.loss_scale
                for encoder, square in squares.items()
            }
        return found

    def gradients(self, update: Update) -> Iterator[tuple[str, dict[str, dict[int, Tensor]]]]:
        """Yields each objective with its gradients: encoder -> place of the parameter in it -> gradient, for
        the encoders and parameters that it reaches. In fp16 they carry the loss scale, as the update's do.

        Only this rank's micro-batches count. The other objectives are divided by infinity, so one backward
        pass per objective is enough and no head needs to be detached; what they alone reach gets zeros.
        """
        task, denominators = self.engine.module, update.denominators
        encoders = task.encoders()
        names = {id(parameter): name for name, parameter in task.named_parameters()}
        device = self.engine.world.device
        for objective in denominators:
            only = {
                name: value if name == objective else torch.full_like(value, torch.inf)
                for name, value in denominators.items()
            }
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                micro_batches = zip(update.batches, update.gradients, strict=True)
                losses = [task("step", batch, only, part).loss for batch, part in micro_batches]
            trunk = [parameter for group in encoders.values() for parameter in group]
            total = torch.stack(losses).sum() * self.engine.loss_scale
            gradients = iter(torch.autograd.grad(total, trunk, allow_unused=True) if trunk else ())
            reached = task.used_by(objective)
            found = {
                encoder: {
                    place: gradient
                    for place, (parameter, gradient) in enumerate([(own, next(gradients)) for own in group])
                    if gradient is not None and names[id(parameter)] in reached
                }
                for encoder, group in encoders.items()
            }
            yield objective, {encoder: own for encoder, own in found.items() if own}
