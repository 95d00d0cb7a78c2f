"""The base configuration of optimizers; the rest is in each optimizer's file under flava_ds/optimizers/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from flava_ds.config.bounds import AtLeast, AtMost, Range
from flava_ds.config.variants import Variant

if TYPE_CHECKING:
    from flava_ds.optimizers.base import Gated

Beta = Annotated[float, Range(0, 1, open_most=True)]
"""Decay rate of a moving average per update."""

BUILT_IN = {
    "adamw": "flava_ds.optimizers.adamw:AdamWConfig",
    "lion": "flava_ds.optimizers.lion:LionConfig",
    "lamb": "flava_ds.optimizers.lamb:LambConfig",
}
"""The built-in optimizers by their tag in a configuration."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Variant, built_in=BUILT_IN):
    """How gradients update the weights."""

    lr: Annotated[float, AtLeast(0), AtMost(10)] = 1e-3
    """Peak learning rate of the schedule."""
    weight_decay: Annotated[float, AtLeast(0), AtMost(100)] = 0.1
    """Share of the weights that each update subtracts, times the learning rate."""
    weight_decay_end: Annotated[float, AtLeast(0), AtMost(100)] | None = None
    """Weight decay at training.total_steps, reached along half a cosine (DINO); None keeps it constant."""
    decay_norm_and_bias: bool = True
    """Apply weight decay to all parameters, as the paper names no exclusion; otherwise it excludes biases,
    LayerNorm, position embeddings, CLS and mask tokens and the logit scale.
    """
    decay_tokens_and_positions: bool = False
    """With decay_norm_and_bias False: decay position embeddings, CLS and mask tokens all the same (DINO)."""

    @property
    def label(self) -> str:
        """Its name in reports."""
        return str(self.type)

    def build(self, groups: list[dict[str, Any]]) -> Gated:
        """Builds the optimizer for the groups of `parameter_groups`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build")
