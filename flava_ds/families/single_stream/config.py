"""What the families have in common whose one BERT reads the words of a text and the regions of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from flava_ds.config.encoders import BertTextConfig, RegionsConfig
from flava_ds.config.family import FamilyConfig
from flava_ds.config.objectives import in_use
from flava_ds.errors import ConfigError

if TYPE_CHECKING:
    from flava_ds.config import Config
    from flava_ds.data.tokenizer import WordPieceTokenizer


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
class SingleStreamConfig(FamilyConfig):
    """A BERT over words and regions, and a pooler. Families say how they embed regions, and which views they
    have.
    """

    image: RegionsConfig = field(default_factory=RegionsConfig)
    text: BertTextConfig = field(default_factory=BertTextConfig)
    """The one transformer, with the embeddings of words."""
    detector: str | None = None
    """Weights of the detector whose regions it reads, or "demo"; only evaluations on images need it."""

    kinds: ClassVar[Mapping[str, str]] = {"pair": "pair"}
    folder: ClassVar[str | None] = "flava_ds.families.single_stream"
    readings: ClassVar[Mapping[str, Reading]]
    """The views of the family's model, and what each reads."""
    reads_tags: ClassVar[bool] = False
    """Whether a text's second segment is the tags of its regions."""
    network: ClassVar[str]
    """The class of the family's model, as "MODULE:CLASS"."""

    @property
    def max_tokens(self) -> int:
        return self.text.max_position_embeddings

    @property
    def image_size(self) -> int:
        return 0 if self.detector is None else self.image.image_size

    @property
    def regions(self) -> RegionsConfig:
        return self.image

    def load_tokenizer(self, config: Any) -> WordPieceTokenizer:
        """Loads the WordPiece vocabulary, whose special tokens the masked objective needs."""
        from flava_ds.data.tokenizer import WordPieceTokenizer

        return WordPieceTokenizer(config.data.vocabulary).fitting(self.text.vocab_size)

    def shape_of(self, view: str) -> BertTextConfig:
        """Returns the transformer's configuration. Raises: ConfigError for a view that the family lacks."""
        self.check_view(view)
        return self.text

    def check(self, config: Any) -> None:
        self.text.check("model.text")
        self.refuse_masked_shares(config)
        apart = self.readings[self.matching_view].prefix
        for name, objective in in_use(config.objectives).items():
            if objective.predicts_codes or (objective.type == "itm" and not apart):
                lacks = "masks no patches" if objective.predicts_codes else "reads no second text to match"
                raise ConfigError(
                    f"objectives.{name}: the family '{self.type}' {lacks}; remove it, or set its weight to 0"
                )


def single_stream_of(config: Config) -> SingleStreamConfig:
    """Returns a configuration's model as a SingleStreamConfig, for callers that need its own fields."""
    return cast(SingleStreamConfig, config.model)
