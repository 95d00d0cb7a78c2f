"""What a model family's configuration has; the family's own folder holds everything else about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flava_ds.config.variants import Variant

if TYPE_CHECKING:
    from flava_ds.data.plan import BatchPlan
    from flava_ds.training.task import Task


@dataclass(frozen=True, kw_only=True)
class FamilyConfig(Variant, built_in={"flava": "flava_ds.families.flava.config:FlavaConfig"}):
    """The model of a run. Each family derives its own frozen configuration, whose tag chooses it in JSON."""

    kinds: ClassVar[Mapping[str, str]]
    """The kinds of step that the family knows, and what a sample of each holds: "image", "text" or "pair"."""

    @property
    def max_tokens(self) -> int:
        """The longest text that the model takes, special tokens included."""
        raise NotImplementedError

    def build(self, config: Any) -> Task:
        """Builds the model with the objectives of `config`, a Config, initialised from config.seed."""
        raise NotImplementedError

    def plan(self, config: Any, source: Any) -> BatchPlan:
        """Says what the batches of `source`, a SourceConfig of `config`, contain."""
        raise NotImplementedError

    def shape_of(self, view: str) -> Any:
        """Returns the configuration of the encoder that a view comes from: hidden_size, layer_norm_eps and so on."""
        raise NotImplementedError

    def check(self, config: Any) -> None:
        """Raises ConfigError for settings of the model, or combinations with the rest of `config`, that cannot work."""
