"""The contents of a checkpoint's folder: file names, state.json and the manifest, all validated before use.

Every value read from a file is either used or named in a CheckpointError, so that a run can fall back to an
older checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any

from flava_ds.checkpoints.files import CONFIG, MANIFEST, STATE, is_name, published_digest, step_of
from flava_ds.checkpoints.place import Place
from flava_ds.config.plain_files import loads
from flava_ds.errors import CheckpointError, DataError
from flava_ds.storage.files import Readable
from flava_ds.storage.tensor_files import CHUNK_BYTES
from flava_ds.training.engine import LOSS_SCALE, SKIP_COUNTERS

MOST_STEPS = 10**9
"""Upper bound of training.total_steps."""
MOST_ELEMENTS = 2**48
"""Upper bound of the elements of a parameter."""


def weights_name(rank: int) -> str:
    """Returns the name of a rank's weights file."""
    return f"weights_{rank:05d}.safetensors"


def optimizer_name(rank: int) -> str:
    """Returns the name of a rank's file of optimizer moments and random states."""
    return f"optimizer_{rank:05d}.safetensors"


def required(world_size: int) -> Iterator[str]:
    """Yields every file of a checkpoint of `world_size` ranks, except its manifest."""
    yield from (STATE, CONFIG)
    for rank in range(world_size):
        yield from (weights_name(rank), optimizer_name(rank))


def _whole(value: Any, least: int = 0, most: int = MOST_STEPS) -> bool:
    return type(value) is int and least <= value <= most


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _object(of: Callable[[Any], bool] | None = None) -> Callable[[Any], bool]:
    """Returns a test for an object whose values all pass `of`."""
    return lambda value: type(value) is dict and (of is None or all(map(of, value.values())))


def _list(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and all(map(of, value))


def _fields(**tests: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Returns a test for an object that has at least these fields."""
    return lambda value: (
        type(value) is dict and all(name in value and test(value[name]) for name, test in tests.items())
    )


def _or_none(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or test(value)


def _shape(value: Any) -> bool:
    return _list(_whole)(value) and math.prod(value) < MOST_ELEMENTS


def _source(value: Any) -> bool:
    """Returns whether this is the saved position of a source's data; `jumps` are pairs (step, offset)."""
    return _fields(jumps=_list(lambda jump: _list(_whole)(jump) and len(jump) == 2))(value)


_spikes = _fields(
    calm=lambda value: type(value) is bool,
    rollbacks=_whole,
    recent=_object(_list(_number)),
    streaks=_object(_whole),
)
_metric = _fields(
    name=lambda value: type(value) is str,
    value=_number,
    higher_is_better=lambda value: type(value) is bool,
)
STATE_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": _whole,
    "world_size": lambda value: _whole(value, least=1, most=2**20),
    "layout": _object(),
    "updates_skipped": _fields(**dict.fromkeys(SKIP_COUNTERS, _whole)),
    "optimizer_updates": _object(_whole),
    "parameters": _object(_shape),
    "buffers": _list(lambda name: type(name) is str),
    "loss_scaler": _or_none(_fields(**dict.fromkeys(LOSS_SCALE, _number))),
    "metric": _or_none(_metric),
    "data": _object(_source),
    "spikes": _or_none(_spikes),
    "frozen": _object(lambda fingerprint: type(fingerprint) is str),
}
"""The keys of state.json, and a test for each value."""


def read_state(folder: Place) -> dict[str, Any]:
    """Returns a checkpoint's state.json, with tuples for shapes.

    Raises: CheckpointError when it is missing, lacks a key, or holds a value that no run writes.
    """
    try:
        state = loads(folder.read(STATE))
        if type(state) is not dict:
            raise ValueError("is not an object")
        for key, test in STATE_FIELDS.items():
            if key not in state:
                raise ValueError(f"lacks {key}")
            if not test(state[key]):
                raise ValueError(f"its {key} is {state[key]!r:.60}, which no run writes")
        if is_name(folder.name) and state["step"] != step_of(folder.name):
            raise ValueError(f"is of step {state['step']}")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / STATE} cannot be used ({error}); use another checkpoint") from error
    shapes = {name: tuple(shape) for name, shape in state["parameters"].items()}
    return {key: state[key] for key in STATE_FIELDS} | {"parameters": shapes}


_described = _fields(
    size=lambda value: _whole(value, most=2**60),
    sha256=lambda value: type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None,
)


def read_manifest(folder: Place) -> dict[str, dict]:
    """Returns file -> {size, sha256}.

    Raises: CheckpointError when there is no readable manifest, it is not the published one, or it names a
    file outside the folder.
    """
    try:
        data = folder.read(MANIFEST)
        manifest = loads(data)
        if type(manifest) is not dict:
            raise ValueError("is not an object")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / MANIFEST} cannot be read ({error}); {folder} is not a complete checkpoint"
        ) from error
    outside = [file for file in manifest if PurePosixPath(file).name != file or file == ".." or "\0" in file]
    if outside:
        raise CheckpointError(
            f"{folder / MANIFEST} names '{outside[0]}', outside the checkpoint; do not use it"
        )
    if wrong := [file for file, entry in manifest.items() if not _described(entry)]:
        raise CheckpointError(
            f"{folder / MANIFEST} does not say size and sha256 of '{wrong[0]}'; use another checkpoint"
        )
    published = published_digest(folder)
    if published is not None and published != hashlib.sha256(data).hexdigest():
        raise CheckpointError(
            f"{folder / MANIFEST} is not the published one: its sha256 differs from the one in latest; use "
            "another checkpoint"
        )
    return manifest


def complete_manifest(folder: Place) -> tuple[dict[str, dict], dict[str, Any]]:
    """Returns the manifest and the state, after checking that the manifest lists every file.

    Raises: CheckpointError that names what is missing or changed.
    """
    manifest = read_manifest(folder)
    if STATE in manifest:
        compare(folder, manifest, STATE)
    state = read_state(folder)
    if absent := next((name for name in required(state["world_size"]) if name not in manifest), None):
        raise CheckpointError(
            f"{folder / MANIFEST} does not list {absent}, which every checkpoint of its ranks has; use "
            "another checkpoint"
        )
    return manifest, state


def verify(folder: Place, rank: int = 0, size: int = 1) -> None:
    """Compares a checkpoint's files with its manifest; each of `size` ranks takes a share.

    Raises: CheckpointError that names the first file that is missing, truncated or changed.
    """
    manifest, _ = complete_manifest(folder)
    for name in sorted(manifest)[rank::size]:
        compare(folder, manifest, name)


def compare(folder: Place, manifest: dict[str, dict], name: str) -> None:
    """Compares one file with the manifest. Raises: CheckpointError when missing, truncated or changed."""
    path = folder / name
    if not folder.has(name):
        raise CheckpointError(
            f"{path} is missing; use another checkpoint (write its name into {folder.parent / 'latest'})"
        )
    expected = manifest[name]
    with closing(folder.open(name)) as file:
        if file.size != expected["size"]:
            raise CheckpointError(
                f"{path} is damaged: {file.size} bytes instead of {expected['size']}; use another "
                f"checkpoint than {folder.name}"
            )
        if sha256_of(file) != expected["sha256"]:
            raise CheckpointError(
                f"{path} is damaged: its sha256 differs from {MANIFEST}'s; use another checkpoint than "
                f"{folder.name}"
            )


def sha256_of(file: Readable) -> str:
    """Hashes a whole file. Raises: CheckpointError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        for offset in range(0, file.size, CHUNK_BYTES):
            digest.update(file.pread(min(CHUNK_BYTES, file.size - offset), offset))
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return digest.hexdigest()
