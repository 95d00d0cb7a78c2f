"""Checkpoints on disk: names, atomic publication, manifests, and reading weights back without unpickling anything."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from flava_ds.errors import CheckpointError

FOLDER, LATEST, MANIFEST, WEIGHTS = "checkpoints", "latest", "manifest.json", "model.safetensors"
_NAME = re.compile(r"step_\d{8}")


def name_of(step: int) -> str:
    """Returns the folder name of the checkpoint after `step` updates."""
    return f"step_{step:08d}"


def latest(run_path: Path) -> Path | None:
    """Returns the checkpoint that `latest` names, or None when the run has none.

    Raises: CheckpointError when `latest` names something that is not there.
    """
    pointer = run_path / FOLDER / LATEST
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    if not _NAME.fullmatch(name) or not (pointer.parent / name).is_dir():
        raise CheckpointError(f"{pointer} names '{name}', which is no checkpoint there; write the name of one of {complete(run_path)} into it, or delete it")
    return pointer.parent / name


def complete(run_path: Path) -> list[str]:
    """Returns the names of the published checkpoints, oldest first."""
    folder = run_path / FOLDER
    return sorted(entry.name for entry in folder.iterdir() if _NAME.fullmatch(entry.name)) if folder.is_dir() else []


def remove_leftovers(run_path: Path) -> list[str]:
    """Deletes what an interrupted save left behind and returns its names."""
    folder = run_path / FOLDER
    leftovers = [entry for entry in folder.iterdir() if ".tmp-" in entry.name] if folder.is_dir() else []
    for entry in leftovers:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return sorted(entry.name for entry in leftovers)


def set_aside(run_path: Path) -> Path | None:
    """Moves an earlier run's checkpoints, logs and configuration into a new folder `previous_<n>`; None when there are none."""
    old = [path for name in (FOLDER, "log.jsonl", "environment.json", "tensorboard", "config.json") if (path := run_path / name).exists()]
    if not old or not (complete(run_path) or (run_path / "log.jsonl").exists()):
        return None
    number = next(n for n in range(1, 1_000_000) if not (run_path / f"previous_{n}").exists())
    folder = run_path / f"previous_{number}"
    folder.mkdir()
    for path in old:
        path.rename(folder / path.name)
    return folder


def describe(folder: Path, files: list[str]) -> dict[str, dict]:
    """Hashes `files` (relative to `folder`), makes sure they are on disk, and returns file -> {size in bytes, sha256}."""
    described = {}
    for file in files:
        path = folder / file
        described[file] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)
    return described


def files_of(folder: Path) -> list[str]:
    """Returns all files of a checkpoint but its manifest, relative and sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def publish(temporary: Path, final: Path, described: dict[str, dict]) -> None:
    """Writes the manifest, gives the folder its final name and points `latest` at it; a kill at any moment leaves the old or the new state."""
    write_text(temporary / MANIFEST, json.dumps(described, indent=1) + "\n")
    for folder in (path for path in (*temporary.rglob("*"), temporary) if path.is_dir()):
        _sync(folder)
    if final.exists():
        shutil.rmtree(final)
    os.rename(temporary, final)
    pointer = final.parent / f"{LATEST}.tmp-{os.getpid()}"
    write_text(pointer, final.name + "\n")
    os.replace(pointer, final.parent / LATEST)
    _sync(final.parent)


def prune(run_path: Path, keep_last: int) -> None:
    """Deletes all but the newest `keep_last` checkpoints; never the one that `latest` names."""
    names, current = complete(run_path), latest(run_path)
    for name in names[: max(0, len(names) - max(1, keep_last))]:
        path = run_path / FOLDER / name
        if path != current:
            shutil.rmtree(path)


def verify(folder: Path, files: list[str] | None = None) -> None:
    """Compares `files` (all by default) with the manifest.

    Raises: CheckpointError naming the first file that is missing, cut short or changed.
    """
    manifest = read_manifest(folder)
    for file in manifest if files is None else files:
        path, expected = folder / file, manifest[file]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; use another checkpoint (write its name into {folder.parent / LATEST})")
        size = path.stat().st_size
        if size != expected["size"]:
            raise CheckpointError(f"{path} is damaged: {size} bytes instead of {expected['size']}; use another checkpoint than {folder.name}")
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged: its sha256 differs from {MANIFEST}'s; use another checkpoint than {folder.name}")


def read_manifest(folder: Path) -> dict[str, dict]:
    """Returns file -> {size, sha256}.

    Raises: CheckpointError when there is no readable manifest, or it names a file outside the folder.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        outside = [file for file in manifest if Path(file).is_absolute() or ".." in Path(file).parts]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read ({error}); {folder} is not a complete checkpoint") from error
    if outside:
        raise CheckpointError(f"{folder / MANIFEST} names '{outside[0]}', outside the checkpoint; do not use it")
    return manifest


def find_weights(path: Path) -> Path:
    """Returns the safetensors file of a checkpoint, a run, or a folder that holds one; a file is returned as it is.

    Raises: CheckpointError when there is none.
    """
    if path.is_file():
        return path
    for folder in (path, latest(path), latest(path.parent) if path.name == FOLDER else None):
        if folder is not None and (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    raise CheckpointError(f"{path} holds no {WEIGHTS}; give a .safetensors file, a checkpoint (checkpoints/step_...), or a run directory with one")


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads fp32 weights by parameter name from a checkpoint, a run, a folder with model.safetensors, or a safetensors file.

    Raises: CheckpointError when there is none, or the file is damaged.
    """
    file = find_weights(Path(path))
    if (file.parent / MANIFEST).is_file():
        verify(file.parent, [file.name])
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is no readable safetensors file ({error})") from error


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes in a safetensors file; reads its header only.

    Raises: CheckpointError when it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is no readable safetensors file ({error})") from error


def check_shapes(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], where: str) -> None:
    """Raises CheckpointError naming the first parameter of the model that `found` lacks or has in another shape."""
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{where} has no tensor '{name}', which this configuration's model has; it was written with another configuration")
        if found[name] != shape:
            raise CheckpointError(f"{where}: '{name}' is {list(found[name])}, but this configuration's model has {list(shape)}")


def write_text(path: Path, text: str) -> None:
    """Writes a small file and makes sure it is on disk."""
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
