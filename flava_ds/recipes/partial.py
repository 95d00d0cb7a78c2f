"""Files that change a recipe: YAML or JSON with the recipe's name under `base` and the fields that differ."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flava_ds import config as configuration
from flava_ds.config import Config
from flava_ds.config.field_docs import field_hints
from flava_ds.config.places import alternatives, plain
from flava_ds.config.plain_files import loads, read_small
from flava_ds.config.variants import Variant, find, is_position, switched
from flava_ds.errors import ConfigError

BASE = "base"
YAML = (".yaml", ".yml")
MOST_BASES = 8
"""Files that may stand on one another."""
_MOST_BYTES = 2**20


class EndlessBasesError(ConfigError):
    """Files that stand on one another without end, or on too many."""


def is_yaml(path: Path) -> bool:
    """Says whether a recipe's place is a YAML file, by its name."""
    return path.suffix.lower() in YAML


def read(
    path: Path, load_base: Callable[[str, int, bool], Config], depth: int = 0, checked: bool = True
) -> Config:
    """Reads a file: a whole configuration in JSON, or the changes of the recipe that its key `base` names.

    `load_base(name, depth, checked)` finds that recipe. Sections are merged field by field, and sources and
    objectives by name; any other value, lists among them, replaces the recipe's. Without `name`, the run is
    called as the file. Whether all fits together is looked at only if `checked`.

    Raises: ConfigError naming the file and the key.
    """
    data = parse_file(path)
    if not (is_yaml(path) or (isinstance(data, dict) and BASE in data)):
        return configuration.load(path)
    if not isinstance(data, dict) or not isinstance(data.get(BASE), str):
        raise ConfigError(
            f"{path}: key '{BASE}' is missing; it names the recipe that the file changes, e.g. "
            f"{BASE}: flava_tiny"
        )
    if depth == MOST_BASES:
        raise EndlessBasesError(
            f"{path}: its key '{BASE}' leads back to the file itself, or to more than {MOST_BASES} files; "
            "name a recipe of the package there, or a file that stands on one"
        )
    changes = {"name": path.stem} | {key: value for key, value in data.items() if key != BASE}
    try:
        config = load_base(base_of(path, data), depth + 1, False)
        return configuration.rebuild(_merged(config, Config, changes, ""), checked)
    except EndlessBasesError:  # each of the files would add its name
        raise
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def base_of(path: Path, data: Mapping[str, Any]) -> str:
    """Returns the recipe that a file changes: a name, or the place of another file."""
    beside = path.parent / data[BASE]
    return str(beside) if beside.suffix in (".json", *YAML) else data[BASE]


def files_of(path: Path, depth: int = 0) -> list[Path]:
    """Returns a file that can be read as a recipe, and those that it stands on, at most MOST_BASES of them.

    Raises: ConfigError; OSError for a file that cannot be read.
    """
    data = parse_file(path)
    if not isinstance(data, dict) or not isinstance(data.get(BASE), str) or depth == MOST_BASES:
        return [path]
    base = Path(base_of(path, data))
    stands = base.suffix in (".json", *YAML) or base.is_file()
    return [path, *(files_of(base, depth + 1) if stands else [])]


def parse_file(path: Path) -> Any:
    """Reads a file as YAML or JSON, by its name.

    Raises: ConfigError.
    """
    try:
        if not is_yaml(path):
            return loads(read_small(path))
        from flava_ds.config import yaml_files  # here, as JSON must not cost PyYAML

        return yaml_files.loads(read_small(path, _MOST_BYTES).decode("utf-8"))
    except ValueError as error:  # neither JSON nor YAML, or no UTF-8
        raise ConfigError(f"{path}: {error}") from error


def _merged(value: Any, hint: Any, changes: Any, where: str) -> Any:
    """Returns the plain types of `value` with `changes` in it; `where` is its name with a dot behind it."""
    base = next((part for part in alternatives(hint) if is_position(part)), None)
    if base is not None and isinstance(changes, dict) and "type" in changes:
        label = f"{where}type"
        kind: type[Variant] = find(base, changes["type"], label)
        value = switched(value, kind, label)
    if not isinstance(changes, dict) or value is None:
        return changes
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = field_hints(type(value))
        below = {key: (getattr(value, key), hints[key]) for key in changes if key in hints}
    elif isinstance(value, Mapping):
        inner = typing.get_args(plain(alternatives(hint)[0]))[1]
        below = {key: (value[key], inner) for key in changes if key in value}
        for key, (own, _) in below.items():
            if changes[key] is None and hasattr(own, "weight"):
                raise ConfigError(f"{where}{key} is null; to leave it out, set its weight to 0")
    else:
        return changes
    return configuration.to_dict(value) | {
        key: _merged(*below[key], change, f"{where}{key}.") if key in below else change
        for key, change in changes.items()
    }
