"""What the families have in common whose one BERT reads the words of a text and the regions of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flava_ds.config.encoders import BertTextConfig, RegionTextConfig
from flava_ds.config.objectives import in_use
from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one view of the model reads of a batch."""

    ids: str
    """The tensor with its packed ids."""
    prefix: str = ""
    """Of the names of these texts' bounds and lengths."""
    hides_regions: bool = False
    """Whether masked regions are hidden from it."""


@dataclass(frozen=True, kw_only=True)
class SingleStreamConfig(RegionTextConfig):
    """A BERT over words and regions, and a pooler. Families say how they embed regions, and which views they
    have.
    """

    folder: ClassVar[str | None] = "flava_ds.families.single_stream"
    readings: ClassVar[Mapping[str, Reading]]
    """The views of the family's model, and what each reads."""
    reads_tags: ClassVar[bool] = False
    """Whether a text's second segment is the tags of its regions."""
    network: ClassVar[str]
    """The class of the family's model, as "MODULE:CLASS"."""

    def shape_of(self, view: str) -> BertTextConfig:
        self.check_view(view)
        return self.text

    def check(self, config: Any) -> None:
        super().check(config)
        apart = self.readings[self.matching_view].prefix
        for name, objective in in_use(config.objectives).items():
            if objective.type == "itm" and not apart:
                raise ConfigError(
                    f"objectives.{name}: the family '{self.type}' reads no second text to match; remove it, "
                    "or set its weight to 0"
                )
