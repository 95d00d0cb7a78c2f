"""The base configuration of balances; the rest is in each balance's file under flava_ds/objectives/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from flava_ds.config.bounds import Above, AtMost
from flava_ds.config.objectives import in_use, without_floor
from flava_ds.config.variants import Variant
from flava_ds.errors import ConfigError

if TYPE_CHECKING:
    from flava_ds.objectives.balance import Balance

BUILT_IN = {
    "uncertainty": "flava_ds.objectives.uncertainty:UncertaintyConfig",
    "gradnorm": "flava_ds.objectives.gradnorm:GradNormConfig",
}
"""The built-in balances by their tag in a configuration."""


@dataclass(frozen=True, kw_only=True)
class BalanceConfig(Variant, built_in=BUILT_IN):
    """Changes the weights of the objectives during training. They begin as configured."""

    lr: Annotated[float, Above(0), AtMost(1)] = 0.01
    """Size of its steps; constant, and independent of optimizer.lr."""

    def build(self, task: Any) -> Balance:
        """Builds the training state that keeps the weights of `task`, a Task."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build")

    def check(self, config: Any) -> None:
        """Raises ConfigError for settings that cannot work in `config`."""
        own = in_use(config.objectives)
        if len(own) < 2:
            raise ConfigError(
                f"balance {self.type} needs at least two objectives, this run has {', '.join(own)} alone; "
                "leave it out with --balance none"
            )
        if (name := without_floor(own)) is not None:
            raise ConfigError(
                f"balance {self.type} weighs by the size of losses, but objectives.{name} may be negative; "
                "leave it out with --balance none"
            )
