"""What every optimizer's configuration has; the rest stands in the optimizer's own file under
flava_ds/optimizers/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from flava_ds.config.bounds import AtLeast, AtMost, Range
from flava_ds.config.variants import Variant

if TYPE_CHECKING:
    import torch

Beta = Annotated[float, Range(0, 1, open_most=True)]
"""What a moving average keeps at each update."""

BUILT_IN = {"adamw": "flava_ds.optimizers.adamw:AdamWConfig", "lion": "flava_ds.optimizers.lion:LionConfig"}
"""The optimizers that come with the package, by the tag that a configuration names them with."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Variant, built_in=BUILT_IN):
    """How weights follow gradients."""

    lr: Annotated[float, AtLeast(0), AtMost(10)] = 1e-3
    """The largest learning rate of the schedule."""
    weight_decay: Annotated[float, AtLeast(0), AtMost(100)] = 0.1
    """Share of the weights that an update subtracts, times the learning rate."""
    decay_norm_and_bias: bool = True
    """The paper names no exclusion; False exempts biases, LayerNorm, embedding tables of position, CLS and
    mask tokens and the logit scale.
    """

    @property
    def label(self) -> str:
        """What reports call it."""
        return str(self.type)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Builds the optimizer, a torch.optim.Optimizer with `Gated` mixed in, for groups of
        `parameter_groups`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its optimizer is built")
