"""What a model family's configuration has; the family's own folder holds everything else about it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flava_ds.config.variants import Variant

if TYPE_CHECKING:
    from flava_ds.data.plan import BatchPlan, Tokenizer
    from flava_ds.training.task import Task

BUILT_IN = {
    "flava": "flava_ds.families.flava.config:FlavaConfig",
    "clip": "flava_ds.families.clip.config:ClipConfig",
}
"""The families that come with the package, by the tag that a configuration names them with."""


@dataclass(frozen=True, kw_only=True)
class FamilyConfig(Variant, built_in=BUILT_IN):
    """The model of a run. Each family derives its own frozen configuration, whose tag chooses it in JSON."""

    kinds: ClassVar[Mapping[str, str]]
    """The kinds of step that the family knows, and what a sample of each holds: "image", "text" or "pair"."""
    folder: ClassVar[str | None] = None
    """The package of the family, whose modules build a run from this: `task` has build_task(config), `plans`
    plan(config, source) and `capabilities` offers(task, config). A family without one overrides the methods.
    """
    layouts: ClassVar[str | None] = None
    """The module that writes and reads the family's models in the layouts of others (flava_ds/layouts.py);
    None for none.
    """

    @property
    def max_tokens(self) -> int:
        """The longest text that the model takes, special tokens included."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """The edge of the pictures that the model takes, in pixels; 0 where it takes none."""
        raise NotImplementedError

    @property
    def num_patches(self) -> int:
        """The patches of a picture, for each of which data may bring a code of the codebook; 0 for a model
        without use for codes.
        """
        return 0

    def load_tokenizer(self, config: Any) -> Tokenizer:
        """Loads the tokenizer of data.vocabulary. Raises: ConfigError when the model has no embedding for its
        ids.
        """
        raise NotImplementedError

    def offers(self, task: Any, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
        """Returns what a trained model offers to an evaluation, and why it lacks the rest: protocol ->
        reason.

        The protocols are those of flava_ds/evaluation/protocols.py: vectors, log odds of pairs, and so on.
        """
        return self._module("capabilities").offers(task, config)

    def build(self, config: Any) -> Task:
        """Builds the model with the objectives of `config`, a Config, initialised from config.seed."""
        return self._module("task").build_task(config)

    def plan(self, config: Any, source: Any) -> BatchPlan:
        """Says what the batches of `source`, a SourceConfig of `config`, contain."""
        return self._module("plans").plan(config, source)

    def _module(self, name: str) -> Any:
        if self.folder is None:
            raise NotImplementedError
        return importlib.import_module(f"{self.folder}.{name}")

    def shape_of(self, view: str) -> Any:
        """Returns the configuration of the encoder that a view comes from: hidden_size, layer_norm_eps and so
        on.
        """
        raise NotImplementedError

    def check(self, config: Any) -> None:
        """Raises ConfigError for settings of the model, or combinations with the rest of `config`, that
        cannot work.
        """
