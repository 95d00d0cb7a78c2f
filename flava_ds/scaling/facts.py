"""What a plan reads of a configuration, as plain values: reading a recipe itself loads torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flava_ds.config.data import micro_batch
from flava_ds.errors import ConfigError, UserError
from flava_ds.recipes import RECIPES, partial
from flava_ds.recipes.outside import absolute, is_outside
from flava_ds.scaling import kept
from flava_ds.scaling.calibration import tuned_file

if TYPE_CHECKING:
    from flava_ds.config import Config

ENGINE = re.compile(r"--engine\.deepspeed[-_]config(?:=(.*))?", re.DOTALL)
UNSEEN = ("name", "codebook_weights", "initial_weights", "schedule", "engine", "checkpoint", "logging",
          "evaluation", "shards", "num_workers", "gradient_accumulation_steps",
          "accumulate_in_fp32")  # fmt: skip
"""Fields that decide nothing about what a micro-step costs."""


@dataclass(frozen=True)
class SourceFacts:
    """What a plan reads of a source that is drawn."""

    kind: str
    max_tokens: int
    global_batch: int
    own_batch: bool
    """Whether that is the source's own; otherwise it is training.global_batch_size."""
    together: int
    """Samples that the model normalises together."""
    masked_share: float


@dataclass(frozen=True)
class Facts:
    """What a plan reads of a configuration."""

    name: str
    drawn_sources: Mapping[str, SourceFacts]
    shares: Mapping[str, float]
    """Share of the steps by source."""
    by_size: bool
    """Whether these follow the numbers of samples in the shards."""
    precision: str
    accumulation: int
    fp32_sums: bool
    deepspeed_config: str
    checkpointing: bool
    total_steps: int
    workers: int
    objectives: int
    tuned: str
    """Where `flava-ds plan --tune` leaves its results."""
    work: str
    """A hash of all that decides what a step costs."""
    vocabulary: str
    """The name or place of the vocabulary."""
    texts: tuple[str, ...]
    """All texts of what decides what a step costs; some may name files."""

    @staticmethod
    def of(config: Config) -> Facts:
        """Returns what a plan reads of a configuration."""
        from flava_ds.config.objectives import in_use

        sources = {
            name: SourceFacts(
                source.kind,
                source.max_tokens,
                config.global_batch_size(name),
                source.global_batch_size is not None,
                config.model.samples_together(source.kind),
                source.masked_share if source.kind == "pair" else 1.0,
            )
            for name, source in config.drawn_sources.items()
        }
        training = config.training
        return Facts(
            name=config.name,
            drawn_sources=sources,
            shares=shares_of(config),
            by_size=config.data.weigh_by_size,
            precision=training.precision,
            accumulation=training.gradient_accumulation_steps,
            fp32_sums=training.accumulate_in_fp32,
            deepspeed_config=config.engine.deepspeed_config,
            checkpointing=training.activation_checkpointing,
            total_steps=training.total_steps,
            workers=config.data.num_workers,
            objectives=len(in_use(config.objectives)),
            tuned=str(tuned_file(config)),
            work=work_of(config),
            vocabulary=config.data.vocabulary,
            texts=tuple(sorted(set(texts_of(seen(config))))),
        )

    def micro_batch_size(self, name: str, world_size: int) -> int:
        """Returns the samples per micro-step on one rank. Raises: ConfigError as Config's."""
        source = self.drawn_sources[name]
        return micro_batch(
            name,
            source.global_batch,
            world_size,
            self.accumulation,
            own=source.own_batch,
            together=source.together,
            masked_share=source.masked_share,
        )


def work_of(config: Config) -> str:
    """Returns a hash of all that decides what a step costs, but for the contents of files."""
    return hashlib.sha256(json.dumps(seen(config), sort_keys=True).encode()).hexdigest()


def shares_of(config: Config) -> dict[str, float]:
    """Returns the share of the run's steps that draw each source, over all stages of weights.

    Raises: ConfigError when data.weigh_by_size needs shards that cannot be read here.
    """
    from flava_ds.data.round_robin import steps_of, weight_stages

    stages, steps = weight_stages(config.data, sizes_of(config)), config.training.total_steps
    return {name: steps_of(stages, name, steps) / steps for name in config.drawn_sources}


def sizes_of(config: Config) -> dict[str, int | None]:
    """Returns the samples of every drawn source if shares depend on them, which reads indexes of shards."""
    if not config.data.weigh_by_size:
        return dict.fromkeys(config.drawn_sources)
    from flava_ds.data.sources import open_source

    try:
        return {name: open_source(config, name).length for name in config.drawn_sources}
    except UserError as error:
        raise ConfigError(f"data.weigh_by_size: a plan needs the numbers of samples; {error}") from error


def seen(config: Config) -> dict[str, Any]:
    """Returns what decides about the cost of a step, in plain types."""
    from flava_ds.config import to_dict

    plain = to_dict(config)
    sources = {name: without(own, UNSEEN) for name, own in plain["data"]["sources"].items()}
    data = without(plain["data"], UNSEEN) | {"sources": sources}
    return without(plain, UNSEEN) | {"data": data, "training": without(plain["training"], UNSEEN)}


def without(section: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Returns a section's fields but for those of these names."""
    return {name: value for name, value in section.items() if name not in names}


class Run:
    """A recipe with its options. Its configuration is read only when something asks for it."""

    def __init__(
        self,
        recipe: str,
        overrides: Sequence[str],
        plugins: Sequence[str],
        resolve: Callable[[list[str]], Config],
    ) -> None:
        """`resolve` reads the recipe with the given options."""
        self.words, self.engine = without_engine(overrides)
        self.recipe, self.plugins = absolute_recipe(recipe), [absolute(place) for place in plugins]
        self._resolve = resolve
        self._config: Config | None = None
        self._facts: Facts | None = None

    def config(self) -> Config:
        """Returns the configuration. Raises: ConfigError."""
        if self._config is None:
            config = self._resolve(self.words)
            if self.engine is not None:
                config = replace(config, engine=replace(config.engine, deepspeed_config=self.engine))
            self._config = config
        return self._config

    def facts(self) -> Facts:
        """Returns what a plan reads of the configuration: kept ones of before, if no code of the user's has
        a say in them.

        Raises: ConfigError.
        """
        if self._facts is None:
            self._facts = Facts.of(self.config()) if self.has_own_code else self._kept_facts()
        return self._facts

    @property
    def has_own_code(self) -> bool:
        """Whether code of the user's has a say; it may read anything, so nothing is kept of it."""
        return bool(self.plugins) or is_outside(self.recipe)

    def _kept_facts(self) -> Facts:
        found = kept.kept_or_new("recipe", self._recipe_key, Facts, lambda: Facts.of(self.config()))
        if found.by_size:  # the shards may have others by now
            found = Facts.of(self.config())
        return found if self.engine is None else replace(found, deepspeed_config=self.engine)

    def _recipe_key(self) -> list[Any] | None:
        """Returns what the facts follow from; None if the recipe cannot be read, which `config` tells."""
        try:
            files = [] if self.recipe in RECIPES else partial.files_of(Path(self.recipe))
        except (UserError, OSError):
            return None
        return [self.recipe, self.words, kept.contents(files)]

    def work_key(self) -> list[Any]:
        """Returns what decides what a step costs, with the contents of the files that it names."""
        facts = self.facts()
        work = facts.work if self._config is None else work_of(self._config)
        return [work, kept.contents([*named_files(facts.texts), *vocabulary_files(facts.vocabulary)])]


def without_engine(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Splits off the option of the DeepSpeed JSON, which decides nothing about the recipe's work."""
    others: list[str] = []
    engine, given = None, iter(words)
    for word in given:
        if (found := ENGINE.fullmatch(word)) is None:
            others.append(word)
        elif (value := found[1] if found[1] is not None else next(given, None)) is not None:
            engine = value
        else:
            others.append(word)
    return others, engine


def absolute_recipe(recipe: str) -> str:
    """Makes a recipe's place independent of the working directory; names stay."""
    path = Path(recipe)
    return str(path.resolve()) if recipe not in RECIPES and path.is_file() else absolute(recipe)


def texts_of(value: Any) -> Iterator[str]:
    """Yields the texts among plain values."""
    if isinstance(value, Mapping | list):
        for own in value.values() if isinstance(value, Mapping) else value:
            yield from texts_of(own)
    elif isinstance(value, str):
        yield value


def named_files(texts: Iterable[str]) -> Iterator[Path]:
    """Yields the files of this machine that texts name, such as a vocabulary."""
    for text in texts:
        with suppress(OSError, RuntimeError, ValueError):  # too long for a path, a user that does not exist
            if (path := Path(text).expanduser()).is_file():
                yield path


def vocabulary_files(vocabulary: str) -> list[Path]:
    """Returns the file that a tokenizer would read; none if there is none, which loading it tells."""
    from flava_ds.data.tokenizer import vocabulary_file

    try:
        return [vocabulary_file(vocabulary)]
    except (UserError, OSError, RuntimeError, ValueError):
        return []
