"""Keeps what took torch to find out, so that the next plan of the same needs none.

An entry is a JSON file of plain numbers in the user's cache. Its name is a hash of all that it follows from:
what it is asked for, the places and contents of the files that this names, the sources of flava_ds and
flava_kernels, and the versions of torch and numpy. An entry that is damaged is not used. Nothing is kept of
the user's own code, which may read anything.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from flava_ds.code_hash import hash_of_sources
from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import UserError
from flava_ds.storage.atomic import write_json
from flava_ds.storage.files import user_cache

log = logging.getLogger(__name__)

MOST_ENTRIES = 200
"""Of all kinds; beyond that the oldest go. One of flava_base has 50 kB."""
LETTERS = 24
"""Of an entry's hash in its name."""


@functools.cache
def code() -> list[str]:
    """Identifies the code that entries follow from; imports none of it."""
    versions = [metadata.version(name) for name in ("torch", "numpy")]
    return [hash_of_sources("flava_ds", "flava_kernels"), *versions]


def place_of(kind: str, key: Any) -> Path:
    """Returns the file of an entry; `key` holds plain values."""
    told = json.dumps([kind, key, code()], sort_keys=True)
    return user_cache() / "plans" / f"{kind}-{hashlib.sha256(told.encode()).hexdigest()[:LETTERS]}.json"


def kept_or_new(kind: str, key: Callable[[], Any], shape: Any, find_out: Callable[[], Any]) -> Any:
    """Returns what is kept under a key, or finds it out and keeps it, unless the key has changed meanwhile:
    then a file was edited, and nobody knows which of its contents were read. A key of None keeps nothing.
    """
    before = key()
    found = None if before is None else find(kind, before, shape)
    if found is None:
        found = find_out()
        if before is not None and key() == before:
            keep(kind, before, found)
    return found


def find(kind: str, key: Any, shape: Any) -> Any:
    """Returns an entry as a `shape`, a dataclass or other type; None if it must be found out (again).

    Says in one line if that is because the file is damaged.
    """
    try:
        file = place_of(kind, key)
    except UserError:  # there is no home folder; `keep` says so
        return None
    try:
        found = dict(loads(read_small(file)))
        if found["name"] != file.name or found["sha256"] != _hash(found["value"]):
            raise ValueError("its contents are not what was written")
        return read(shape, found["value"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        log.warning("%s is damaged (%s); what it holds is found out again", file, error)
        return None


def keep(kind: str, key: Any, value: Any) -> None:
    """Writes an entry. Says so if it cannot."""
    plain = as_plain(value)
    try:
        file = place_of(kind, key)
        write_json(file, {"name": file.name, "sha256": _hash(plain), "value": plain}, indent=None)
    except OSError as error:
        log.warning("%s cannot be written (%s); the next plan finds it out again", file, error.strerror)
    except UserError as error:
        log.warning("there is no cache (%s); the next plan finds it out again", error)
    else:
        _clean(file.parent)


def _clean(folder: Path) -> None:
    """Deletes the oldest entries beyond MOST_ENTRIES; another process may do so at the same time."""
    aged = []
    for entry in folder.glob(f"*-{LETTERS * '[0-9a-f]'}.json"):
        with suppress(OSError):
            aged.append((entry.stat().st_mtime_ns, entry))
    for _, old in sorted(aged)[:-MOST_ENTRIES]:
        with suppress(OSError):
            old.unlink(missing_ok=True)


def _hash(value: Any) -> str:
    """Returns a hash of plain values."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def contents(files: Iterable[Path]) -> list[list[str]]:
    """Returns the place of each file and a hash of its contents, to be part of a key."""
    return [[str(file), hash_of(file)] for file in sorted({file.resolve() for file in files})]


def hash_of(path: Path) -> str:
    """Returns a hash of a file's contents; its version if it is too large, and "" if it cannot be read."""
    with suppress(OSError):
        return hashlib.sha256(read_small(path)).hexdigest()
    with suppress(OSError):
        return f"{path.stat().st_size} {path.stat().st_mtime_ns}"
    return ""


def as_plain(value: Any) -> Any:
    """Returns a value in JSON's types: a dataclass becomes the list of its fields."""
    if is_dataclass(value):
        return [as_plain(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        return {str(key): as_plain(own) for key, own in value.items()}
    return [as_plain(own) for own in value] if isinstance(value, list | tuple) else value


def read(shape: Any, value: Any) -> Any:
    """Returns what `as_plain` was given, as `shape` annotates it. Raises: ValueError for anything else."""
    if isinstance(shape, type) and is_dataclass(shape):
        hints = _fields(shape)
        if not isinstance(value, list) or len(value) != len(hints):
            raise ValueError(f"no {shape.__name__}: {value!r:.60}")
        return shape(*map(read, hints, value))
    base, inner = typing.get_origin(shape) or shape, typing.get_args(shape)
    if base is types.UnionType:
        return None if value is None else read(inner[0], value)
    if isinstance(base, type) and issubclass(base, Mapping):
        if isinstance(value, dict):
            return {inner[0](key): read(inner[1], own) for key, own in value.items()}
    elif base not in (str, bool, int, float):  # a tuple or another sequence, all of one type
        if isinstance(value, list):
            return tuple(read(inner[0], own) for own in value)
    elif base is float and type(value) in (int, float) and math.isfinite(value):
        return value
    elif type(value) is base:
        return value
    raise ValueError(f"no {getattr(base, '__name__', base)}: {value!r:.60}")


@functools.cache
def _fields(shape: type) -> tuple[Any, ...]:
    """Returns the types of a dataclass' fields in their order."""
    hints = typing.get_type_hints(shape)
    return tuple(hints[field.name] for field in fields(shape))
