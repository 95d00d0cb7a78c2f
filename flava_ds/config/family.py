"""The base configuration of model families; everything else about a family is in its own folder."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from flava_ds.config.objectives import in_use
from flava_ds.config.variants import Variant
from flava_ds.errors import ConfigError

if TYPE_CHECKING:
    from flava_ds.data.plan import BatchPlan
    from flava_ds.training.task import Task

BUILT_IN = {
    "flava": "flava_ds.families.flava.config:FlavaConfig",
    "clip": "flava_ds.families.clip.config:ClipConfig",
    "bert": "flava_ds.families.bert.config:BertConfig",
    "vilt": "flava_ds.families.vilt.config:ViltConfig",
    "albef": "flava_ds.families.albef.config:AlbefConfig",
    "align": "flava_ds.families.align.config:AlignConfig",
    "visualbert": "flava_ds.families.visualbert.config:VisualBertConfig",
    "vinvl": "flava_ds.families.vinvl.config:VinvlConfig",
    "vlbert": "flava_ds.families.vlbert.config:VlbertConfig",
    "uniter": "flava_ds.families.uniter.config:UniterConfig",
    "unit": "flava_ds.families.unit.config:UnitConfig",
    "simvlm": "flava_ds.families.simvlm.config:SimvlmConfig",
    "lxmert": "flava_ds.families.two_streams.config:LxmertConfig",
    "vilbert": "flava_ds.families.two_streams.config:VilbertConfig",
}
"""The built-in families by their tag in a configuration."""


@dataclass(frozen=True, kw_only=True)
class FamilyConfig(Variant, built_in=BUILT_IN):
    """The model of a run. Each family derives its own frozen configuration, selected in JSON by its tag."""

    type: ClassVar[str]
    """The tag, which every family has."""
    kinds: ClassVar[Mapping[str, str]]
    """The family's kinds of step, and the content of a sample of each: "image", "text" or "pair"."""
    folder: ClassVar[str | None] = None
    """The family's package: `task` defines build_task(config), `plans` plan(config, source), `capabilities`
    offers(task, config). A family without a package overrides the methods of this class.
    """
    layouts: ClassVar[str | None] = None
    """Module that converts the family's models to and from other layouts (flava_ds/layouts.py), if any."""
    model_type: ClassVar[str | None] = None
    """The family's name in transformers, if that is not its tag."""

    views: ClassVar[tuple[str, ...]] = ()
    """The views of the family's model, for `check_view`."""
    matching_view: ClassVar[str] = "multimodal_masked"
    """The view whose first rows tell whether image and text match."""
    regions_view: ClassVar[str] = "multimodal_masked"
    """The view with masked regions, for families that read regions."""
    ignores_padding: ClassVar[bool] = False
    """Whether its plans and its model know padded batches (flava_ds/data/padding.py)."""
    provides: ClassVar[frozenset[str]] = frozenset()
    """Methods of the family's model that some objectives need beyond its views, e.g. "word_table", and what
    they need of its batches, e.g. "tags".
    """

    @classmethod
    def of(cls, config: Any) -> Self:
        """Returns the model of `config`, a Config, for callers that need the family's own fields."""
        return cast(Self, config.model)

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of a text, special tokens included."""
        return self._section("text", "max_tokens").max_position_embeddings

    @property
    def text_vocab_size(self) -> int:
        """Entries of the table of words."""
        return self._section("text", "text_vocab_size, or load_tokenizer").vocab_size

    @property
    def image_size(self) -> int:
        """Edge of the model's input images in pixels; 0 if it takes none."""
        return self._section("image", "image_size").image_size

    @property
    def num_patches(self) -> int:
        """Patches per image, each of which may have a stored code; 0 for a model without codes."""
        return 0

    def stacks(self, source: Any) -> Sequence[tuple[Any, int]] | None:
        """Returns the stacks of layers that a sample of `source` passes through, each with its tokens there,
        for estimates of memory; None takes them from the model's sections.
        """
        return None

    @property
    def pooled_views(self) -> tuple[str, ...]:
        """The views whose first rows the model's `pooled` takes."""
        return (self.matching_view,)

    @property
    def pooled_size(self) -> int:
        """Width of what `pooled` returns."""
        return self.shape_of(self.matching_view).hidden_size

    @property
    def regions(self) -> Any:
        """What the model reads of the regions of an image (RegionsConfig); None if it reads pixels."""
        return None

    def samples_together(self, content: str) -> int:
        """Returns of how many samples a micro-batch holds whole groups; `content` is a kind of sample."""
        return 1

    def load_tokenizer(self, config: Any) -> Any:
        """Loads the WordPiece vocabulary of data.vocabulary, whose special tokens begin and end a text: a
        WordPieceTokenizer.

        A family with another kind of vocabulary overrides this, and returns another Tokenizer.

        Raises: ConfigError when the model's embedding is too small for its ids.
        """
        from flava_ds.data.tokenizer import WordPieceTokenizer

        return WordPieceTokenizer(config.data.vocabulary).fitting(self.text_vocab_size)

    def offers(self, task: Any, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
        """Returns what a trained model offers to evaluations, and why it lacks the rest: protocol -> reason.

        flava_ds/evaluation/protocols.py defines the protocols: vectors, log odds of pairs, and so on.
        """
        return self._module("capabilities").offers(task, config)

    def build(self, config: Any) -> Task:
        """Builds the model with the objectives of `config`, a Config, initialised from config.seed."""
        return self._module("task").build_task(config)

    def plan(self, config: Any, source: Any) -> BatchPlan:
        """Returns the contents of the batches of `source`, a SourceConfig of `config`."""
        return self._module("plans").plan(config, source)

    def _section(self, name: str, instead: str) -> Any:
        """Returns one of the sections that the package's families have. Raises: ConfigError."""
        if not hasattr(self, name):
            raise ConfigError(
                f"the family '{self.type}' has no section `{name}`, so {type(self).__name__} has to define "
                f"{instead} itself"
            ).everywhere()
        return getattr(self, name)

    def _module(self, name: str) -> Any:
        if self.folder is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no `folder`, so it has to define build, plan and offers itself"
            )
        return importlib.import_module(f"{self.folder}.{name}")

    def shape_of(self, view: str) -> Any:
        """Returns the configuration of the encoder behind a view: hidden_size, layer_norm_eps and so on.

        Raises: ConfigError for a view that the family lacks, and for a family that has not said so, which
        some objectives of the package ask for.
        """
        raise ConfigError(
            f"an objective asks the family '{self.type}' for the size of its view '{view}', and "
            f"{type(self).__name__} defines no shape_of(view); define it, or leave that objective out"
        ).everywhere()

    def check_view(self, view: str, asked_by: str = "an objective") -> None:
        """Raises ConfigError for a view that is not among `views`."""
        if view not in self.views:
            raise ConfigError(
                f"{asked_by} reads the view '{view}', but the family '{self.type}' has only "
                f"{' and '.join(self.views)}; remove that objective, or set its weight to 0"
            ).everywhere()

    def check_provides(self, method: str, where: str) -> None:
        """Raises ConfigError if the family's model lacks a method that the objective `where` needs."""
        if method not in self.provides:
            raise ConfigError(
                f"{where} needs a model with `{method}`, which the family '{self.type}' does not have; leave "
                "it out, or set its weight to 0"
            )

    def refuse_masked_shares(self, config: Any) -> None:
        """Raises ConfigError for sources with settings of FLAVA's masked pass, for families without one."""
        for name, source in config.data.sources.items():
            if source.masked_share != 1 or source.image_codes_key:
                unread = "image_codes_key" if source.image_codes_key else "masked_share"
                raise ConfigError(
                    f"source '{name}': {unread} is for masked objectives on a share of a batch or on image "
                    f"codes, which the family '{self.type}' does not have; leave it out"
                )

    def check_tasks(self, config: Any) -> None:
        """Raises ConfigError for a source of a task that the family lacks, or that has other samples."""
        for name, source in config.data.sources.items():
            content = self.kinds.get(source.step_kind)
            if content is None and source.task is not None:
                raise ConfigError(
                    f"source '{name}': the family '{self.type}' has no task '{source.task:.80}'; it has "
                    f"{', '.join(self.kinds)}"
                )
            if content not in (None, source.kind):
                raise ConfigError(
                    f"source '{name}': task '{source.task}' needs samples of kind {content}; set "
                    f"--data.sources.{name}.kind {content}"
                )

    def refuse_codes(self, config: Any) -> None:
        """Raises ConfigError for objectives that predict an image's codes, for families without patches."""
        for name, objective in in_use(config.objectives).items():
            if objective.predicts_codes:
                raise ConfigError(
                    f"objectives.{name} predicts codes of masked patches, and the family '{self.type}' masks "
                    "none; remove it, or set its weight to 0"
                )

    def check_identities(self, config: Any) -> None:
        """Raises ConfigError for a source that says what pictures show if the family does not read it, and
        for one that does not beside others that do.
        """
        told = {name: own.identity_key for name, own in config.data.sources.items() if own.kind == "pair"}
        for name, source in config.data.sources.items():
            if source.identity_key and (name not in told or "hard_negatives" not in self.provides):
                raise ConfigError(
                    f"source '{name}': the family '{self.type}' reads no identities of its {source.kind} "
                    "samples; leave out identity_key"
                )
        if any(told.values()) and not all(told.values()):
            lacking = next(name for name, key in told.items() if not key)
            raise ConfigError(
                f"source '{lacking}': other sources of pairs say what their pictures show; set "
                f"--data.sources.{lacking}.identity-key, too"
            )

    def check_regions(self, config: Any) -> None:
        """Raises ConfigError for a source of pairs that lacks the regions that the model reads, or that has
        regions that it does not read.
        """
        for name, source in config.data.sources.items():
            if self.regions is None and source.regions_key:
                raise ConfigError(
                    f"source '{name}': the family '{self.type}' reads images and no regions; leave out "
                    "regions_key"
                )
            if self.regions is not None and source.kind != "text" and not source.regions_key:
                raise ConfigError(
                    f"source '{name}': the family '{self.type}' reads the regions of images; write them with "
                    f"`flava-ds prepare regions` and set --data.sources.{name}.regions-key "
                    "regions.safetensors"
                )

    def check(self, config: Any) -> None:
        """Raises ConfigError for model settings that cannot work, alone or with the rest of `config`."""
