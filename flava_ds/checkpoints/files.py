"""Names, atomic publication and deletion of checkpoints. Reads no tensors."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flava_ds.checkpoints.place import Place
from flava_ds.config import CheckpointConfig, Config
from flava_ds.config.plain_files import loads
from flava_ds.errors import CheckpointError
from flava_ds.storage.atomic import PARTIAL, sync

FOLDER, LATEST, MANIFEST = "checkpoints", "latest", "manifest.json"
STATE, CONFIG = "state.json", "config.json"
_LOGS = (
    *("log.jsonl", "environment.json", "metrics.prom", "tensorboard", "wandb", "profile"),
    *("quarantine", "streams"),
)
_RESULTS = ("evaluations.json", "suites", "fine_tuning", "evaluation.json", "report.html")
"""What a run, and evaluations of it, write into its folder."""
_NAME = re.compile(r"step_(\d{8}|[1-9]\d{8,})")


class Seen:
    """What a run has seen of its checkpoints: the complete ones, and their costs by checkpoint.best_metric.

    With it, a save of a run that keeps thousands looks only at what is new. A name that a list of the folder
    lacks is forgotten.
    """

    def __init__(self) -> None:
        self.complete: set[str] = set()
        self.costs: dict[str, float | None] = {}

    def forget(self, names: Iterable[str]) -> None:
        """Lets these be looked at again: they have been replaced, or are being deleted."""
        for name in names:
            self.complete.discard(name)
            self.costs.pop(name, None)


def name_of(step: int) -> str:
    """Returns the folder name of the checkpoint after `step` updates."""
    return f"step_{step:08d}"


def step_of(name: str) -> int:
    """Returns the number of updates in a checkpoint's folder name."""
    return int(name.rsplit("_", 1)[-1])


def is_name(name: str) -> bool:
    """Returns whether a folder is named like a checkpoint."""
    return _NAME.fullmatch(name) is not None


def place_of(run_path: Path, config: Config | None = None) -> Place:
    """Returns where a run's checkpoints are: in its folder, or under its name in checkpoint.directory."""
    if config is None or config.checkpoint.directory is None:
        return Place(run_path / FOLDER)
    return Place(config.checkpoint.directory) / config.name


def named(place: Place) -> str | None:
    """Returns the name in `latest`, None if there is no such file. Raises: CheckpointError if unreadable."""
    said = _latest_words(place)
    return said and said[0]


def published_digest(folder: Place) -> str | None:
    """Returns the SHA-256 that a checkpoint's manifest had when it was published, if `latest` records it.

    None for a checkpoint that is no longer the latest, and when somebody edited `latest` by hand.
    """
    try:
        name, digest = _latest_words(folder.parent) or ("", "")
    except CheckpointError:
        return None
    return digest if name == folder.name and digest else None


def digest_of(folder: Place) -> str:
    """Returns the SHA-256 of a checkpoint's manifest, which has those of all its files."""
    return hashlib.sha256(folder.read(MANIFEST)).hexdigest()


def point(place: Place, name: str) -> None:
    """Makes a checkpoint the latest one.

    Writes its name together with the SHA-256 of its manifest, so that neither can be exchanged alone.
    """
    digest = digest_of(place / name)
    place.write(LATEST, f"{name} {digest}\n")


def _latest_words(place: Place) -> tuple[str, str] | None:
    """Returns name and digest in `latest`, None without the file. Raises: CheckpointError if unreadable."""
    try:
        name, _, digest = place.read(LATEST).decode("utf-8", errors="replace").strip().partition(" ")
        return name, digest.strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{place / LATEST} cannot be read ({error})") from error


def latest(place: Place, seen: Seen | None = None) -> Place | None:
    """Returns the checkpoint to continue from, None when there is none.

    That is the one that `latest` names, the one before it if that is gone, or the newest without a `latest`.
    If the list lacks it, makes the file system look again, with a file that it makes and deletes.

    Raises: CheckpointError when `latest` names no checkpoint and there is none before it.
    """
    name, names = named(place), complete(place, seen)
    if name is not None and name not in names:
        place.look_again()
        names = complete(place, seen)
    while name not in names and (again := named(place)) != name:
        # a run published another one meanwhile, and deleted this one
        name, names = again, complete(place, seen)
    if name is None or name in names:
        return place / (name or names[-1]) if names else None
    before = [other for other in names if is_name(name) and step_of(other) < step_of(name)]
    if not before:
        raise CheckpointError(
            f"{place / LATEST} names '{name}', which is not a complete checkpoint there; write the name of "
            f"one of {names} into it, or delete it to go on from the newest"
        )
    return place / before[-1]


def complete(place: Place, seen: Seen | None = None) -> list[str]:
    """Returns the names of the published checkpoints, oldest first.

    Those in `seen` need no look as long as they are listed, and what is found goes into it. So the manifest
    of one that another process has begun to delete may be gone.
    """
    seen = Seen() if seen is None else seen
    listed = sorted(filter(is_name, place.names()), key=step_of)
    seen.forget(seen.complete.difference(listed))
    seen.complete.update(
        name for name in listed if name not in seen.complete and (place / name).has(MANIFEST)
    )
    return [name for name in listed if name in seen.complete]


def remove_leftovers(place: Place) -> list[str]:
    """Deletes what an interrupted save left behind and returns the names."""
    leftovers = [
        name
        for name in place.names()
        if ".tmp-" in name or name.endswith(PARTIAL) or (is_name(name) and not (place / name).has(MANIFEST))
    ]
    for name in leftovers:
        with suppress(FileNotFoundError):  # another process's, and gone by now
            place.remove(name)
    return leftovers


def set_aside(run_path: Path, place: Place) -> Path | None:
    """Moves an earlier run's checkpoints, logs, results and configuration into a new folder `previous_<n>`.

    Returns the folder, None when there is nothing to move. Other files stay, as the new run may read them.

    Raises: CheckpointError when the checkpoints are not in the run's folder.
    """
    if place != Place(run_path / FOLDER) and complete(place):
        raise CheckpointError(
            f"{place} holds checkpoints of an earlier run and checkpoint.resume is off; move them away, "
            "or give another --name"
        )
    old = [path for name in (FOLDER, *_LOGS, *_RESULTS, CONFIG) if (path := run_path / name).exists()]
    if not old or not (complete(Place(run_path / FOLDER)) or (run_path / "log.jsonl").exists()):
        return None
    number = next(n for n in range(1, 1_000_000) if not (run_path / f"previous_{n}").exists())
    folder = run_path / f"previous_{number}"
    folder.mkdir()
    for path in old:
        path.rename(folder / path.name)
    return folder


def staging(place: Place, step: int, world_size: int) -> Place:
    """Returns the folder that a checkpoint is written into before it is published.

    A temporary one next to the final one; in object storage, which cannot rename, the final one.
    """
    name = name_of(step)
    return place / name if place.local is None else place / f"{name}.tmp-{world_size}ranks"


def publish(place: Place, staged: Place, step: int, described: dict[str, dict]) -> Place:
    """Completes a checkpoint and points `latest` at it; a kill at any moment leaves the old or the new state.

    `described` is file -> {size, sha256}. The manifest marks a checkpoint as complete, so it is written last.
    On a file system, one rename then gives the folder its final name.
    """
    final = place / name_of(step)
    staged.write(MANIFEST, json.dumps(dict(sorted(described.items())), indent=1) + "\n")
    if staged.local is not None and final.local is not None:
        if os.path.lexists(final.local):
            _delete(place, final.name)
        os.rename(staged.local, final.local)
        # before `latest` points at it: a power failure must not lose the rename but keep the pointer
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
    """Deletes a checkpoint; of a symbolic link, only the link.

    The manifest goes first: without it, a half-deleted folder does not count as a checkpoint.
    """
    if not (place / name).is_link and (place / name).has(MANIFEST):
        (place / name).remove(MANIFEST)
    place.remove(name)


def prune(
    place: Place, rules: CheckpointConfig, good: str | None = None, seen: Seen | None = None
) -> list[str]:
    """Deletes the checkpoints that no rule keeps; returns their names.

    Always keeps the one that `latest` names and `good`, the last good one.
    """
    seen = Seen() if seen is None else seen
    while True:
        names, current = complete(place, seen), latest(place, seen)
        costs = _costs(place, names, rules.best_metric, seen) if rules.keep_best else {}
        always = {good} | ({current.name} if current else set())
        keep = kept(names, costs, rules) | always
        gone = [name for name in names if name not in keep]
        # Those that go, or in whose place others go, are looked at again: someone may be deleting them. What
        # keep_every alone keeps decides over no other.
        deciding = kept(names, costs, replace(rules, keep_every=0)) | always | {*gone}
        absent = [name for name in names if name in deciding and not (place / name).has(MANIFEST)]
        if not absent:
            break
        seen.forget(absent)
    for name in gone:
        _delete(place, name)
    return gone


def best(place: Place, rules: CheckpointConfig) -> Place | None:
    """Returns the checkpoint with the best checkpoint.best_metric; None without one that has it."""
    costs = _costs(place, complete(place), rules.best_metric, Seen())
    return next((place / name for name in _best_first(costs)), None)


def kept(names: list[str], costs: dict[str, float | None], rules: CheckpointConfig) -> set[str]:
    """Returns which of `names` (oldest first) stay: the last, multiples of keep_every, and the best."""
    keep = set(names[-max(1, rules.keep_last) :])
    if rules.keep_every:
        keep |= {name for name in names if step_of(name) % rules.keep_every == 0}
    return keep | set(_best_first(costs)[: rules.keep_best])


def _best_first(costs: dict[str, float | None]) -> list[str]:
    """Returns the checkpoints that have a cost, the lowest first."""
    return [name for _, name in sorted((cost, name) for name, cost in costs.items() if cost is not None)]


def _costs(place: Place, names: list[str], metric: str, seen: Seen) -> dict[str, float | None]:
    """Returns the costs of checkpoints, None for those without; reads the state of those not in `seen`."""
    for name in names:
        if name not in seen.costs:
            with suppress(OSError):  # then it is read again at the next save
                seen.costs[name] = _cost((place / name).read(STATE), metric)
    return {name: seen.costs.get(name) for name in names}


def _cost(state: bytes, name: str) -> float | None:
    """Returns the metric in a state.json as a cost (negated where higher is better); None if it has none."""
    try:
        metric = loads(state)["metric"]
        if metric["name"] != name or not math.isfinite(metric["value"]):
            return None
        return -metric["value"] if metric["higher_is_better"] else metric["value"]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
