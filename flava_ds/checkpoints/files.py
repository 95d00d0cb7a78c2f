"""Checkpoints in their folder: names, atomic publication, and what is deleted when. Nothing here reads
tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path

from flava_ds.checkpoints.place import Place
from flava_ds.config import CheckpointConfig, Config
from flava_ds.config.plain_files import loads
from flava_ds.errors import CheckpointError
from flava_ds.storage.atomic import PARTIAL, sync

FOLDER, LATEST, MANIFEST, STATE, CONFIG = (
    "checkpoints",
    "latest",
    "manifest.json",
    "state.json",
    "config.json",
)
_NAME = re.compile(r"step_\d{8}")


def name_of(step: int) -> str:
    """Returns the folder name of the checkpoint after `step` updates."""
    return f"step_{step:08d}"


def step_of(name: str) -> int:
    """Returns the number of updates in a checkpoint's folder name."""
    return int(name.rsplit("_", 1)[-1])


def is_name(name: str) -> bool:
    """Tells whether a folder's name is that of a checkpoint."""
    return _NAME.fullmatch(name) is not None


def place_of(run_path: Path, config: Config | None = None) -> Place:
    """Returns where a run's checkpoints lie: in its folder, or under checkpoint.directory, in a folder of the
    run's name.
    """
    if config is None or config.checkpoint.directory is None:
        return Place(run_path / FOLDER)
    return Place(config.checkpoint.directory) / config.name


def named(place: Place) -> str | None:
    """Returns the name that `latest` says, or None when it is missing. Raises: CheckpointError when it cannot
    be read.
    """
    said = _latest_words(place)
    return said and said[0]


def published_digest(folder: Place) -> str | None:
    """Returns the SHA-256 of a checkpoint's manifest when it was published, if `latest` beside it tells: not
    of a checkpoint before, nor when somebody has written a name alone into it, nor when an earlier version of
    this package wrote it."""
    try:
        name, digest = _latest_words(folder.parent) or ("", "")
    except CheckpointError:
        return None
    return digest if name == folder.name and digest else None


def point(place: Place, name: str) -> None:
    """Makes a checkpoint the latest one: writes its name and the SHA-256 of its manifest, which binds the one
    to the other.
    """
    digest = hashlib.sha256((place / name).read(MANIFEST)).hexdigest()
    place.write(LATEST, f"{name} {digest}\n")


def _latest_words(place: Place) -> tuple[str, str] | None:
    """Returns the name and the digest in `latest`, or None when it is missing. Raises: CheckpointError when
    it cannot be read.
    """
    try:
        name, _, digest = place.read(LATEST).decode("utf-8", errors="replace").strip().partition(" ")
        return name, digest.strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{place / LATEST} cannot be read ({error})") from error


def latest(place: Place) -> Place | None:
    """Returns the checkpoint that `latest` names, the one before when that is gone, the newest when `latest`
    is missing; None when there is none.

    Raises: CheckpointError when `latest` names no checkpoint and none before.
    """
    name, names = named(place), complete(place)
    if name is None or name in names:
        return place / (name or names[-1]) if names else None
    before = [other for other in names if other < name]
    if not _NAME.fullmatch(name) or not before:
        raise CheckpointError(
            f"{place / LATEST} names '{name}', which is no complete checkpoint there; write the name of "
            f"one of {names} into it, or delete it "
            "to go on from the newest"
        )
    return place / before[-1]


def complete(place: Place) -> list[str]:
    """Returns the names of the published checkpoints, oldest first."""
    return [name for name in place.names() if _NAME.fullmatch(name) and (place / name).has(MANIFEST)]


def remove_leftovers(place: Place) -> list[str]:
    """Deletes what an interrupted save left behind and returns its names."""
    leftovers = [
        name
        for name in place.names()
        if ".tmp-" in name
        or name.endswith(PARTIAL)
        or (_NAME.fullmatch(name) and not (place / name).has(MANIFEST))
    ]
    for name in leftovers:
        place.remove(name)
    return leftovers


def set_aside(run_path: Path, place: Place) -> Path | None:
    """Moves an earlier run's checkpoints, logs and configuration into a new folder `previous_<n>`; None when
    there are none.

    Raises: CheckpointError when its checkpoints lie elsewhere than in the run's folder.
    """
    if place != Place(run_path / FOLDER) and complete(place):
        raise CheckpointError(
            f"{place} holds checkpoints of an earlier run and checkpoint.resume is off; move them away, "
            "or give another --name"
        )
    names = (
        FOLDER,
        "log.jsonl",
        "environment.json",
        "metrics.prom",
        "tensorboard",
        "wandb",
        "profile",
        CONFIG,
    )
    old = [path for name in names if (path := run_path / name).exists()]
    if not old or not (complete(Place(run_path / FOLDER)) or (run_path / "log.jsonl").exists()):
        return None
    number = next(n for n in range(1, 1_000_000) if not (run_path / f"previous_{n}").exists())
    folder = run_path / f"previous_{number}"
    folder.mkdir()
    for path in old:
        path.rename(folder / path.name)
    return folder


def staging(place: Place, step: int, world_size: int) -> Place:
    """Returns the folder that a checkpoint is written into: its own in object storage, which renames nothing,
    else a temporary one beside it.
    """
    name = name_of(step)
    return place / name if place.local is None else place / f"{name}.tmp-{world_size}ranks"


def publish(place: Place, staged: Place, step: int, described: dict[str, dict]) -> Place:
    """Completes a checkpoint and points `latest` at it; a kill at any moment leaves the old or the new state.

    `described` is file -> {size, sha256}. A checkpoint is complete when its manifest is there, so that is
    written last; a file system then gives the folder its final name in one step.
    """
    final = place / name_of(step)
    staged.write(MANIFEST, json.dumps(dict(sorted(described.items())), indent=1) + "\n")
    if staged.local is not None and final.local is not None:
        if os.path.lexists(final.local):
            _delete(place, final.name)
        os.rename(staged.local, final.local)
        sync(final.local.parent)
    point(place, final.name)
    return final


def return_to(place: Place, folder: Place) -> list[str]:
    """Makes a checkpoint the latest one and deletes the later ones; returns their names."""
    point(place, folder.name)
    later = [name for name in complete(place) if step_of(name) > step_of(folder.name)]
    for name in later:
        _delete(place, name)
    return later


def _delete(place: Place, name: str) -> None:
    """Deletes a checkpoint; no half of it is ever taken for one. Of one that is a link, the link alone."""
    if not (place / name).is_link and (place / name).has(MANIFEST):
        (place / name).remove(MANIFEST)
    place.remove(name)


def prune(place: Place, rules: CheckpointConfig, good: str | None = None) -> list[str]:
    """Deletes the checkpoints that no rule keeps, never the one that `latest` names nor the last `good` one;
    returns their names.
    """
    names, current = complete(place), latest(place)
    costs = {name: _cost(place / name, rules.best_metric) for name in names} if rules.keep_best else {}
    keep = kept(names, costs, rules) | ({current.name} if current else set()) | {good}
    gone = [name for name in names if name not in keep]
    for name in gone:
        _delete(place, name)
    return gone


def kept(names: list[str], costs: dict[str, float | None], rules: CheckpointConfig) -> set[str]:
    """Returns which of `names` (oldest first) stay: the last ones, those at multiples of keep_every, and
    those with the lowest costs.
    """
    keep = set(names[-max(1, rules.keep_last) :])
    if rules.keep_every:
        keep |= {name for name in names if step_of(name) % rules.keep_every == 0}
    measured = sorted((cost, name) for name, cost in costs.items() if cost is not None)
    return keep | {name for _, name in measured[: rules.keep_best]}


def _cost(folder: Place, name: str) -> float | None:
    """Reads the value that a checkpoint is judged by, negated where higher is better; None where it has none,
    or none that compares.
    """
    try:
        metric = loads(folder.read(STATE))["metric"]
        if metric["name"] != name or not math.isfinite(metric["value"]):
            return None
        return -metric["value"] if metric.get("higher_is_better", False) else metric["value"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
