"""Checks of the data's configuration: each error names the field, the value and the fix."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flava_ds.config.data import (
    KINDS,
    UNCHANGED,
    WHOLE,
    DataConfig,
    ImageTransformConfig,
    SourceConfig,
    drawn_names,
    weights_by_stage,
)
from flava_ds.config.objectives import in_use
from flava_ds.errors import ConfigError, did_you_mean

_LONGEST_NAME = 100


def check_data(data: DataConfig, max_tokens: int) -> None:
    """Raises ConfigError that names the field, the value and the fix."""
    longest = (data.read_retries + 1) * data.read_timeout_s
    remote = any("://" in source.shards for source in data.sources.values())
    if remote and 0 < data.worker_timeout_s < longest:
        raise ConfigError(
            f"data.worker_timeout_s {data.worker_timeout_s} is less than the {longest:g} s that a failing "
            "read may take (data.read_retries + 1 times data.read_timeout_s); raise it, so that the error "
            "names the read instead of its process"
        )
    check_names("data.sources", data.sources, "_-.+")
    check_seeds(data.sources)
    for name, source in data.sources.items():
        _check_source(name, source, max_tokens)
    _check_weights(data)


def check_padding(config: Any) -> None:
    """Raises ConfigError for padding in a Config whose model or objectives would take it for data."""
    if not config.training.pad_to_multiple_of:
        return
    off = "use --training.pad-to-multiple-of 0"
    if not config.model.ignores_padding:
        raise ConfigError(
            f"training.pad_to_multiple_of: the family '{config.model.type}' would take padding for "
            f"text; {off}"
        )
    for name, objective in in_use(config.objectives).items():
        if not objective.ignores_padding:
            raise ConfigError(
                f"training.pad_to_multiple_of: objectives.{name} would take padding for data; leave the "
                f"objective out, or {off}"
            )


def check_names(place: str, names: Iterable[str], signs: str) -> None:
    """Raises ConfigError for a name that cannot serve in options, messages and logs. `place` is the section
    that has them by name; beside letters and digits, they may have `signs`.
    """
    options: dict[str, str] = {}
    what = place.rpartition(".")[2].removesuffix("s")
    allowed = re.compile(rf"\w[\w{re.escape(signs)}]*")
    for name in names:
        if not allowed.fullmatch(name) or len(name) > _LONGEST_NAME:
            *others, last = (f"'{sign}'" for sign in signs)
            raise ConfigError(
                f"{place}: {name!r:.80} cannot name a{'n' if what[0] in 'aeiou' else ''} {what}; use "
                f"letters, digits, {', '.join(others)} and {last}, at most {_LONGEST_NAME} characters, "
                "starting with a letter or digit"
            )
        if (other := options.setdefault(name.replace("_", "-"), name)) != name:
            raise ConfigError(
                f"{place}: '{other}' and '{name}' differ only in '_' and '-', which options do not "
                "distinguish; rename one"
            )


def check_seeds(sources: Mapping[str, SourceConfig]) -> None:
    """Raises ConfigError for a seed that two sources share."""
    seeds: dict[int, str] = {}
    for name, source in sources.items():
        if source.seed is not None and (other := seeds.setdefault(source.seed, name)) != name:
            raise ConfigError(
                f"data.sources: '{other}' and '{name}' both have seed {source.seed}; change "
                f"--data.sources.{name}.seed"
            )


def _check_source(name: str, source: SourceConfig, max_tokens: int) -> None:
    """Checks one source."""
    if source.masked_share != 1 and source.kind != "pair":
        raise ConfigError(
            f"source '{name}': masked_share {source.masked_share:g} only applies to pairs; {source.kind} "
            "batches are masked as a whole"
        )
    if source.kind != "image" and not 2 < source.max_tokens <= max_tokens:
        raise ConfigError(
            f"source '{name}': max_tokens {source.max_tokens} must lie between 3 and {max_tokens}, the "
            "model's longest text"
        )
    if source.pipeline is not None and source.reading != "stream":
        raise ConfigError(
            f"source '{name}': pipeline requires a stream; set --data.sources.{name}.reading stream"
        )
    check_transform(f"source '{name}': transform", source.transform)
    if source.regions_key and (source.kind == "text" or source.image_codes_key):
        unread = "image_codes_key" if source.image_codes_key else "regions_key"
        raise ConfigError(
            f"source '{name}': a source with regions reads no images, and one of texts no regions; leave out "
            f"{unread}"
        )
    changing = _unchanging(f"--data.sources.{name}.transform", source.transform)
    if source.image_codes_key and changing:
        raise ConfigError(
            f"source '{name}': precomputed image codes need a transform that changes nothing; set "
            f"{' '.join(changing)}"
        )


def _unchanging(option: str, transform: ImageTransformConfig) -> list[str]:
    """Returns the options that make a transform change nothing, of the fields that now change something."""
    inert = ("jitter_probability", "blur_sigma")  # they only say how other fields change an image
    words = []
    for name, still in dataclasses.asdict(UNCHANGED).items():
        if name not in inert and getattr(transform, name) != still:
            values = still if isinstance(still, tuple) else (still,)
            words += [f"{option}.{name.replace('_', '-')}", *(f"{value:g}" for value in values)]
    return words


def check_labels(name: str, source: SourceConfig, objective: Any) -> None:
    """Checks a source against the objective that reads labels in its steps, None if none does."""
    if objective is None and source.targets_key:
        raise ConfigError(
            f"source '{name}': no objective reads the labels of {source.step_kind} steps; leave out "
            "targets_key"
        )
    if objective is not None and not source.targets_key:
        raise ConfigError(
            f"source '{name}': an objective reads labels of its samples; set "
            f"--data.sources.{name}.targets-key targets.safetensors"
        )
    still = {"horizontal_flip": 0.0, "rotation_degrees": 0.0, "crop_scale": WHOLE.crop_scale}
    moved = [field for field, value in still.items() if getattr(source.transform, field) != value]
    low, high = source.transform.crop_ratio
    moved += ["crop_ratio"] * (low > WHOLE.crop_ratio[0] or high < WHOLE.crop_ratio[1])
    if objective is not None and objective.targets == "boxes" and moved:
        raise ConfigError(
            f"source '{name}': transform.{moved[0]} moves what its boxes describe; use the geometry of "
            f"config.WHOLE, --data.sources.{name}.transform.crop-scale 1 1 "
            f"--data.sources.{name}.transform.crop-ratio 0.01 100, without flip and rotation"
        )


def check_transform(where: str, transform: ImageTransformConfig) -> None:
    """Checks one augmentation."""
    for name, order in (
        ("crop_scale", "the smallest share of the area first, then the largest"),
        ("crop_ratio", "the smallest width / height first, then the largest"),
        ("blur_sigma", "the least and the largest standard deviation, in this order"),
    ):
        if (bounds := getattr(transform, name))[0] > bounds[1]:
            raise ConfigError(f"{where}.{name} {bounds}: give {order}")


def _check_weights(data: DataConfig) -> None:
    """Checks the names, signs and steps of weights; round_robin checks that steps can draw something."""
    kinds = sorted({source.step_kind for source in data.sources.values()} | set(KINDS))
    _check_mapping("data.kind_weights", data.kind_weights, kinds, "kind")
    last = 0
    for number, change in enumerate(data.weight_changes):
        name = f"data.weight_changes[{number}]"
        if change.step <= last or change.step % data.block_steps:
            raise ConfigError(
                f"{name}: step {change.step} must come after step {last} and be a multiple of "
                f"data.block_steps {data.block_steps}"
            )
        if not change.weights and not change.kind_weights:
            raise ConfigError(f"{name} changes nothing; set weights or kind_weights")
        last = change.step
        _check_mapping(f"{name}.weights", change.weights, list(data.sources), "source")
        _check_mapping(f"{name}.kind_weights", change.kind_weights, kinds, "kind")
    for first, weights, of_kinds in weights_by_stage(data):
        if data.sources and not drawn_names(data, weights, of_kinds):
            raise ConfigError(
                f"data.sources: no source has a weight above 0 at step {first}; give one, e.g. "
                f"--data.sources.{next(iter(data.sources))}.weight 1"
            )
        unnamed = [
            name
            for name, source in data.sources.items()
            if weights[name] and of_kinds is not None and source.step_kind not in of_kinds
        ]
        if unnamed:
            kind = data.sources[unnamed[0]].step_kind
            raise ConfigError(
                f"data.kind_weights: no share for '{kind}', the kind of source '{unnamed[0]}', at step "
                f"{first}; give it one, or 0 to pause the kind"
            )


def _check_mapping(where: str, weights: Mapping[str, float] | None, known: list[str], what: str) -> None:
    """Checks the names in a mapping of weights."""
    for name in weights or {}:
        if name not in known:
            hint = did_you_mean(name, known) or "; there is " + ", ".join(known)
            raise ConfigError(f"{where}: no {what} is called {name!r:.80}{hint}")
