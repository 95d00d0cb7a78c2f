"""Several runs as one recipe: each stage is an ordinary run, and passes weights on to later ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flava_ds import config as configuration
from flava_ds.config import Config, did_you_mean
from flava_ds.config.options import override
from flava_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """Weights that a stage begins with: those of an earlier stage at its end."""

    stage: str
    prefixes: tuple[str, ...]
    """Beginnings of the parameters' names, e.g. "model.image_encoder."."""
    average: str | None = None
    """The training state whose running average is taken in place of the weights: DINO's teacher is
    "dino.teacher", that of training.weight_average "ema"."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a sequence."""

    name: str
    config: Config
    inherits: tuple[Inherited, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stages:
    """A sequence of runs. Stage s of it is the run NAME/s, in a folder of its own below the sequence's."""

    name: str
    stages: tuple[Stage, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the stages."""
        return tuple(stage.name for stage in self.stages)


def in_sequence(name: str, *stages: tuple[str, Callable[[], Config], Sequence[Inherited]]) -> Stages:
    """Puts recipes together: (name of the stage, recipe, what it inherits)."""
    return Stages(
        name=name,
        stages=tuple(
            Stage(name=own, config=replace(recipe(), name=f"{name}/{own}"), inherits=tuple(inherits))
            for own, recipe, inherits in stages
        ),
    )


def resolve_stages(sequence: Stages, words: Sequence[str]) -> Stages:
    """Returns the sequence with overrides: `--STAGE.FIELD value` for one stage, `--FIELD value` for all.

    `--name` names the folder of them all. Raises: ConfigError for an unknown option, a combination that
    cannot run, or a stage that inherits from none before it.
    """
    from flava_ds.recipes import without_idle_sources

    of_all, of_one, name = _divided(sequence, words)
    stages: list[Stage] = []
    for stage in sequence.stages:
        config = replace(stage.config, name=f"{name}/{stage.name}")
        try:
            config = override(config, [*of_all, *of_one[stage.name]])
            config = configuration.check(without_idle_sources(config))
        except ConfigError as error:
            raise ConfigError(f"stage '{stage.name}': {error}") from error
        stages.append(replace(stage, config=config))
    resolved = Stages(name=name, stages=tuple(stages))
    _check(resolved)
    return resolved


def _divided(sequence: Stages, words: Sequence[str]) -> tuple[list[str], dict[str, list[str]], str]:
    """Divides overrides into those of all stages, those of each, and the sequence's name."""
    of_all: list[str] = []
    of_one: dict[str, list[str]] = {name: [] for name in sequence.names}
    current, name, naming = of_all, sequence.name, False
    fields = [field.name for field in dataclasses.fields(Config)]
    for word in words:
        if naming:
            name, naming = word, False
            continue
        if word.startswith("--"):
            current, option = of_all, re.split(r"[.=]", word[2:].replace("-", "_"))[0]
            prefix = next((own for own in of_one if word[2:].startswith(f"{own}.")), None)
            if prefix is not None:
                current, word = of_one[prefix], f"--{word[3 + len(prefix) :]}"
            elif option == "name":
                name, naming = (word.split("=", 1)[1], False) if "=" in word else (name, True)
                continue
            elif option not in fields and not option.startswith("no_"):
                suggestion = did_you_mean(option, [*of_one, *fields])
                raise ConfigError(
                    f"unknown option '{word}'{suggestion or ''}; the stages are {', '.join(of_one)}: "
                    "--STAGE.FIELD changes one of them, --FIELD all"
                )
        current.append(word)
    return of_all, of_one, name


def _check(sequence: Stages) -> None:
    """Raises ConfigError for a stage that inherits from one that does not come before it, or an average of
    the weights from one that keeps none.
    """
    configs = {stage.name: stage.config for stage in sequence.stages}
    for number, stage in enumerate(sequence.stages):
        before = sequence.names[:number]
        for inherited in stage.inherits:
            if inherited.stage not in before:
                raise ConfigError(
                    f"stage '{stage.name}' inherits from '{inherited.stage}', which is none before it; there "
                    f"is {', '.join(before) or 'none'}"
                )
            if inherited.average == "ema" and not configs[inherited.stage].training.weight_average:
                raise ConfigError(
                    f"stage '{stage.name}' inherits the average 'ema' of '{inherited.stage}', which keeps "
                    f"none; set --{inherited.stage}.training.weight-average, e.g. to 0.9999"
                )
