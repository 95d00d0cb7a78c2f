"""Sources that a command line adds: `--data.sources.NAME.kind pair --data.sources.NAME.shards FOLDER ...`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from flava_ds.config.data import KINDS, SourceConfig
from flava_ds.config.tree import Config
from flava_ds.errors import ConfigError, did_you_mean

PREFIX = "--data.sources."
_OPTION = re.compile(r"--data\.sources\.(?P<name>.+)\.(?P<field>kind|shards)(=.*)?")


def add_sources(config: Config, words: list[str]) -> Config:
    """Returns `config` with a source for each name that it does not have and whose kind and shards are set by
    options; what else is set there is left to the options' own reading.

    Such a source has SourceConfig's defaults, and no longer texts than the model takes.

    Raises: ConfigError when the kind is set without the shards, or the other way round, or is unknown.
    """
    taken = {_dashed(name) for name in config.data.sources}
    given: dict[str, dict[str, Any]] = {}
    for name, field, value in _set(words):
        if _dashed(name) not in taken:
            same = next((other for other in given if _dashed(other) == _dashed(name)), name)
            given.setdefault(same, {})[field] = value
    for name in _named(words):
        if not any(
            _dashed(name + ".").startswith(_dashed(known) + ".") for known in (*config.data.sources, *given)
        ):
            name = name.split(".")[0]
            raise ConfigError(
                f"no source is called '{name}'{_near(name, config)} to add it, give "
                f"--data.sources.{name}.kind {'|'.join(KINDS)} and --data.sources.{name}.shards FOLDER"
            )
    sources = dict(config.data.sources)
    longest = min(SourceConfig.max_tokens, config.model.max_tokens)
    for name, fields in given.items():
        if missing := {"kind", "shards"} - fields.keys():
            lacks = missing.pop()
            means = "|".join(KINDS) if lacks == "kind" else "FOLDER"
            raise ConfigError(
                f"no source is called '{name}'{_near(name, config)} to add it, give "
                f"--data.sources.{name}.{lacks} {means} too"
            )
        if fields["kind"] not in KINDS:
            raise ConfigError(
                f"--data.sources.{name}.kind {fields['kind']!r:.60}: choose one of {', '.join(KINDS)}"
            )
        sources[name] = SourceConfig(**fields, max_tokens=longest)
    return config.with_sources(sources)


def _near(name: str, config: Config) -> str:
    """Names the source that a misspelled name means, or else all."""
    known = list(config.data.sources)
    return did_you_mean(name, known) or f"; there is {', '.join(known) or 'none'};"


def _named(words: list[str]) -> Iterator[str]:
    """Yields NAME.FIELD of each option that sets a field of a source."""
    for word in words:
        option = word.partition("=")[0]
        if option.startswith(PREFIX) and "." in option.removeprefix(PREFIX):
            yield option.removeprefix(PREFIX)


def _set(words: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yields name, field and value of each option that sets the kind or the shards of a source."""
    for number, word in enumerate(words):
        if found := _OPTION.fullmatch(word):
            after = words[number + 1] if number + 1 < len(words) else ""
            yield found["name"], found["field"], found[3][1:] if found[3] else after


def _dashed(name: str) -> str:
    """Returns a name as options compare it."""
    return name.replace("_", "-")
