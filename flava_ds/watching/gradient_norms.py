"""How hard each objective pulls on each encoder: gradient norms of single objectives, measured beside the update and without touching it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flava_ds.batch import Batch, Kind
from flava_ds.objectives.global_contrastive import FeatureGradients
from flava_ds.ranks.distributed import log
from flava_ds.training.engine import Engine


class GradientNorms:
    """Measures at the first step of each kind in every window of `every` steps, so that objectives of rare kinds get their points, too."""

    def __init__(self, engine: Engine, every: int) -> None:
        """Measures never where `every` is 0, or with ZeRO-3, which keeps no whole gradients; the latter is said once."""
        self.engine, self.every = engine, every
        self._window, self._seen = -1, set()
        if every and engine.stage == 3:
            self.every = 0
            if engine.world.is_main:
                log.warning("logging.objective_gradient_norms_every is ignored: ZeRO-3 keeps no whole gradients; use ZeRO 0, 1 or 2 to measure them")

    def due(self, step: int, kind: Kind) -> bool:
        """Tells whether `step`, of `kind`, is to be measured; to be asked once for every step."""
        if not self.every:
            return False
        if step // self.every != self._window:
            self._window, self._seen = step // self.every, set()
        new = kind not in self._seen
        self._seen.add(kind)
        return new

    def measure(self, batches: list[Batch], denominators: dict[str, Tensor], parts: list[FeatureGradients | None]) -> dict[str, Tensor]:
        """Returns each objective's gradient norm, on all encoders and on each, by the names of the log's fields.

        They are those of this rank's micro-batches. The other objectives are divided by infinity, so that one backward pass per objective
        suffices and no head is taken apart.
        """
        encoders = encoder_parameters(self.engine.module)
        device, found = self.engine.world.device, {}
        for objective in denominators:
            only = {name: value if name == objective else torch.full_like(value, torch.inf) for name, value in denominators.items()}
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                losses = [self.engine.module(batch, only, part).loss for batch, part in zip(batches, parts, strict=True)]
            trunk = [parameter for group in encoders.values() for parameter in group]
            gradients = iter(torch.autograd.grad(torch.stack(losses).sum(), trunk, allow_unused=True))
            squares = {}
            for encoder, group in encoders.items():
                own = [gradient for gradient in (next(gradients) for _ in group) if gradient is not None]
                if own:
                    squares[encoder] = torch.stack(torch._foreach_norm(own, 2, dtype=torch.float32)).square().sum()
            found[f"gradient_norm/{objective}"] = torch.stack([*squares.values()]).sum().sqrt()
            found |= {f"encoder_gradient_norm/{objective}/{encoder}": square.sqrt() for encoder, square in squares.items()}
        return found


def encoder_parameters(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Returns the trainable parameters of each encoder, by the encoder's name."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        encoder = next((part for part in name.split(".") if part.endswith("_encoder")), None)
        if encoder is not None and parameter.requires_grad:
            found.setdefault(encoder, []).append(parameter)
    return found
