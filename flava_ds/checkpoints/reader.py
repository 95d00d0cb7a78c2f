"""Reads a checkpoint by parameter and element, independent of the ranks and sharding that wrote it.

Needs no device and unpickles nothing.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flava_ds import config as configuration
from flava_ds.checkpoints.contents import (
    MOST_ELEMENTS,
    compare,
    complete_manifest,
    optimizer_name,
    read_state,
    weights_name,
)
from flava_ds.checkpoints.files import CONFIG, FOLDER, MANIFEST, Seen, complete, latest, place_of, step_of
from flava_ds.checkpoints.place import Place
from flava_ds.config.plain_files import loads
from flava_ds.errors import CheckpointError
from flava_ds.storage.tensor_files import Entry, TensorFile, save_tensors

WEIGHTS = "model.safetensors"
"""Name of the file of whole weights in folders that are not checkpoints."""
MOST_OPEN_FILES = 64


class _Parts:
    """Where a tensor is: its elements `starts[i]` .. `ends[i]` are in `files[i]`, from byte `begins[i]` on.

    Columns, because a checkpoint of hundreds of ranks has millions of parts: 40 bytes each.
    """

    def __init__(self) -> None:
        self.starts, self.ends, self.begins = array("q"), array("q"), array("q")
        self.files: list[TensorFile] = []
        self.dtypes: list[torch.dtype] = []

    def add(self, start: int, entry: Entry, file: TensorFile) -> None:
        """Adds the flat tensor of a file, whose first element is the parameter's element `start`."""
        self.starts.append(start)
        self.ends.append(start + entry.shape[0])
        self.begins.append(entry.begin)
        self.files.append(file)
        self.dtypes.append(entry.dtype)


class CheckpointReader:
    """One published checkpoint. `state` is its state.json, `shapes` maps every parameter to its shape."""

    def __init__(self, folder: Place) -> None:
        """Raises: CheckpointError when its state cannot be read."""
        self.folder, self.state = folder, read_state(folder)
        self.shapes: dict[str, tuple[int, ...]] = self.state["parameters"]
        self._files: dict[str, TensorFile] = {}
        self._parts: dict[str, _Parts] = {}
        self._listed: set[Any] = set()
        self._open: list[TensorFile] = []

    def check_parts(self) -> None:
        """Compares what its tensor files say that they hold with state.json.

        Raises: CheckpointError when a tensor's parts do not make up its parameter, or have a type or a shape
        that no run writes.
        """
        for file_name in (weights_name, optimizer_name):
            self._list_all(file_name)
        for tensor, parts in self._parts.items():
            key, _, name = tensor.partition("/")
            whole, columns = 0, (parts.starts, parts.ends, parts.files)
            for start, end, file in sorted(zip(*columns, strict=True), key=itemgetter(0)):
                if start != whole:
                    raise self._contradicts(file, tensor)
                whole = end
            if name not in self.shapes or whole != math.prod(self.shapes[name]):
                raise self._contradicts(parts.files[0], tensor)
        absent = [
            name for name, shape in self.shapes.items() if math.prod(shape) and not self.holds("weight", name)
        ]
        absent += [f"buffer/{name}" for name in self.state["buffers"] if not self._has_buffer(name)]
        if absent:
            raise CheckpointError(f"{self.folder} has nothing of '{absent[0]}'; use another checkpoint")
        for rank in range(self.state["world_size"]):
            file = self._file(optimizer_name(rank))
            for name, entry in file.entries.items():
                if name.startswith("generator/") and not _is_generator_state(name, entry):
                    raise self._contradicts(file, name)

    def _contradicts(self, file: TensorFile, tensor: str) -> CheckpointError:
        """Returns the error that names a tensor."""
        return CheckpointError(
            f"{file.where}: what it has of '{tensor}' does not agree with the checkpoint's state.json; use "
            "another checkpoint"
        )

    def _has_buffer(self, name: str) -> bool:
        """Tells whether rank 0 has written a buffer."""
        return f"buffer/{name}" in self._file(weights_name(0)).entries

    def read(self, key: str, name: str, start: int, numel: int) -> Tensor:
        """Returns elements of a parameter's 'weight' or of one of its moments, flat, in fp32.

        Raises: CheckpointError when the checkpoint lacks some of them.
        """
        values, missing = torch.empty(numel, dtype=torch.float32), numel
        parts = self._parts_of(key, name)
        for i, (first, last) in enumerate(zip(parts.starts, parts.ends, strict=True)):
            begin, end = max(start, first), min(start + numel, last)
            if begin < end:
                dtype = parts.dtypes[i]
                at = parts.begins[i] + (begin - first) * dtype.itemsize
                values[begin - start : end - start] = self._opened(parts.files[i]).read_at(
                    tensor_name(key, name), dtype, at, end - begin
                )
                missing -= end - begin
        if missing:
            raise CheckpointError(
                f"{self.folder}: {missing} of {numel} elements of '{name}' ({key}) are in none of its "
                "files; use another checkpoint"
            )
        return values

    def whole(self, key: str, name: str) -> Tensor:
        """Returns what `read` does, in full and in the parameter's shape."""
        shape = self.shapes[name]
        return self.read(key, name, 0, math.prod(shape)).reshape(shape)

    def weights(self) -> dict[str, Tensor]:
        """Returns every parameter (in fp32) and persistent buffer in full."""
        return {name: self.whole("weight", name) for name in self.shapes} | self.buffers()

    def averaged(self, state: str) -> dict[str, Tensor]:
        """Returns the running average of a training state, of the parameters that it follows.

        Raises: CheckpointError if there is none.
        """
        key = f"average.{state}"
        found = {name: self.whole(key, name) for name in self.shapes if self.holds(key, name)}
        if not found:
            known = sorted({own.split("/")[0] for own in self._parts if own.startswith("average.")})
            names = ", ".join(own.removeprefix("average.") for own in known)
            raise CheckpointError(f"{self.folder} has no running average '{state}'; it has {names or 'none'}")
        return found

    def buffers(self) -> dict[str, Tensor]:
        """Returns the persistent buffers by name."""
        return {name: self._file(weights_name(0)).read(f"buffer/{name}") for name in self.state["buffers"]}

    def holds(self, key: str, name: str) -> bool:
        """Returns whether it holds any of a parameter's 'weight', or of one of its moments or averages."""
        return bool(self._parts_of(key, name).files)

    def buffer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the persistent buffers by name."""
        entries = self._file(weights_name(0)).entries
        return {name: entries[f"buffer/{name}"].shape for name in self.state["buffers"]}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the training states' tensors by name."""
        entries = self._file(optimizer_name(0)).entries
        return {
            name.removeprefix("state/"): entry.shape
            for name, entry in entries.items()
            if name.startswith("state/")
        }

    def states(self, wanted: Collection[str]) -> dict[str, Tensor]:
        """Returns the tensors of training states by name. All of `wanted` must exist."""
        return {name: self._file(optimizer_name(0)).read(f"state/{name}") for name in wanted}

    def generators(self, rank: int) -> dict[str, Tensor]:
        """Returns a rank's random states by device type; empty when fewer ranks wrote the checkpoint."""
        if rank >= self.state["world_size"]:
            return {}
        file = self._file(optimizer_name(rank))
        return {
            name.removeprefix("generator/"): file.read(name)
            for name in file.entries
            if name.startswith("generator/")
        }

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()
        for held in (self._files, self._parts, self._listed, self._open):
            held.clear()

    def _parts_of(self, key: str, name: str) -> _Parts:
        """Returns where the elements of a tensor are.

        The first use reads the headers of all files of its kind.
        """
        self._list_all(weights_name if key == "weight" else optimizer_name)
        return self._parts.get(tensor_name(key, name)) or _Parts()

    def _list_all(self, file_name: Callable[[int], str]) -> None:
        """Takes in what all files of a kind hold, once."""
        if file_name not in self._listed:
            self._listed.add(file_name)
            for rank in range(self.state["world_size"]):
                self._list(self._file(file_name(rank)))

    def _list(self, file: TensorFile) -> None:
        """Records which parts of which tensors a file holds, and drops its own, longer record of them."""
        try:
            starts = loads(file.metadata["starts"])
            if any(type(start) is not int or not 0 <= start < MOST_ELEMENTS for start in starts.values()):
                raise ValueError("a tensor starts outside its parameter")
            entries = {tensor: file.entries[tensor] for tensor in starts}
            if any(len(entry.shape) != 1 or not entry.dtype.is_floating_point for entry in entries.values()):
                raise ValueError("a part of a parameter is no flat tensor of floats")
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file.where} does not describe its contents ({type(error).__name__}: {error}); use "
                "another checkpoint"
            ) from error
        for tensor, entry in entries.items():
            if tensor not in self._parts:
                self._parts[tensor] = _Parts()
            self._parts[tensor].add(starts[tensor], entry, file)
        file.forget(entries)

    def _file(self, name: str) -> TensorFile:
        """Returns a file, reading its header on first use."""
        if name not in self._files:
            self._files[name] = TensorFile(lambda: self.folder.open(name), f"{self.folder / name}")
        return self._opened(self._files[name])

    def _opened(self, file: TensorFile) -> TensorFile:
        """Marks a file as in use and closes the least recently used one.

        A checkpoint may have more files than a process can open.
        """
        if file in self._open:
            self._open.remove(file)
        self._open.append(file)
        if len(self._open) > MOST_OPEN_FILES:
            self._open.pop(0).close()
        return file


def _is_generator_state(name: str, entry: Entry) -> bool:
    """Tells whether a tensor may be a random state of its device."""
    own = torch.get_rng_state()
    return entry.dtype == own.dtype and (
        entry.shape == tuple(own.shape) if name == "generator/cpu" else len(entry.shape) == 1
    )


def tensor_name(key: str, name: str) -> str:
    """Returns the name that a parameter's 'weight', or one of its moments, has in a rank's file."""
    return f"{key}/{name}"


def good_checkpoints(place: Place, seen: Seen | None = None) -> Iterator[Place]:
    """Yields the good checkpoints, newest first: no spike had begun and the last update was not skipped.

    Ignores those newer than `latest`: somebody has pointed it back, so they do not belong to this run.
    Those in `seen` are looked at when their turn comes.
    """
    current = latest(place, seen)
    until = -1 if current is None else step_of(current.name)
    names = [name for name in complete(place, seen) if step_of(name) <= until]
    folders = (place / name for name in reversed(names))
    yield from (folder for folder in folders if folder.has(MANIFEST) and _is_good(folder))


def _is_good(folder: Place) -> bool:
    """Returns whether nothing was wrong when a checkpoint was written."""
    try:
        state = read_state(folder)
    except CheckpointError:
        return False
    return (
        state["spikes"] is not None
        and state["spikes"]["calm"]
        and not state["updates_skipped"]["skipped_in_a_row"]
    )


def locate(path: str | Path | Place) -> Place | Path:
    """Finds the checkpoint of a checkpoint folder, run or folder of checkpoints, or else a safetensors file.

    Raises: CheckpointError when there is neither.
    """
    place = path if isinstance(path, Place) else Place(path)
    if place.local is not None and place.local.is_file():
        return place.local
    if place.has(MANIFEST):
        return place
    run = place.local if place.local is not None and (place.local / CONFIG).is_file() else None
    elsewhere = []
    if run is not None and not place.has(WEIGHTS):
        elsewhere.append(place_of(run, configuration.load(run / CONFIG)))
    for folder in (place / FOLDER, place, *elsewhere):
        if (found := latest(folder)) is not None:
            return found
    if place.local is not None and (place.local / WEIGHTS).is_file():
        return place.local / WEIGHTS
    raise CheckpointError(
        f"{path} holds neither a checkpoint nor {WEIGHTS}; give a checkpoint (checkpoints/step_...), a "
        "run directory with one, or a .safetensors file"
    )


def load_weights(path: str | Path | Place, average: str | None = None) -> dict[str, Tensor]:
    """Reads weights by parameter name; where a training state `average` follows them, its running average.

    `path` is a checkpoint (whose weights come in fp32), a run, a folder with model.safetensors, or a
    safetensors file.

    Raises: CheckpointError when there are none, or they are damaged.
    """
    found = locate(path)
    if isinstance(found, Place):
        manifest, state = complete_manifest(found)
        for rank in range(state["world_size"]):
            compare(found, manifest, weights_name(rank))
            if average is not None:
                compare(found, manifest, optimizer_name(rank))
        with closing(CheckpointReader(found)) as reader:
            return reader.weights() | (reader.averaged(average) if average is not None else {})
    if average is not None:
        raise CheckpointError(f"{found} holds weights alone; give a run or a checkpoint with '{average}'")
    try:
        with safe_open(found, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{found} is not a readable safetensors file ({error})") from error


def write_weights(source: str | Path | Place, out: Path, average: str | None = None) -> None:
    """Writes the weights of a checkpoint or run, or a running average, into one safetensors file, atomically.

    Raises: CheckpointError when the checkpoint is damaged or the file cannot be written.
    """
    save_tensors(load_weights(source, average), out)


def check_shapes(
    found: dict[str, tuple[int, ...]],
    expected: dict[str, tuple[int, ...]],
    where: str,
    *,
    of_parameters: bool = False,
) -> None:
    """Raises CheckpointError for the first expected tensor that `found` lacks or has in another shape.

    A scalar of the parameters may be found as [1]: that is how a run keeps it
    (`deepspeed_fixes.reshape_scalars`).
    """
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(
                f"{where} has no tensor '{name}', which this configuration's model has; it was written "
                "with another configuration"
            )
        is_scalar = of_parameters and shape == () and found[name] == (1,)
        if found[name] != shape and not is_scalar:
            raise CheckpointError(
                f"{where}: '{name}' is {list(found[name])}, but this configuration's model has {list(shape)}"
            )
