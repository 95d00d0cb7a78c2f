"""What a checkpoint says of itself is not believed: lists that are not whole, and states that no
run writes."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import small_weights, write_checkpoint
from torch import Tensor

from flava_ds.checkpoints import contents, files, reader
from flava_ds.checkpoints.checkpoint import newest_sound
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import load_weights
from flava_ds.errors import CheckpointError
from flava_ds.ranks.distributed import World
from flava_ds.storage.tensor_files import HashingWriter, TensorFile, write_tensors

ALONE = World(rank=0, local_rank=0, size=1, device=None, host_group=None)


def flip(path: Path) -> None:
    """Changes the last byte of a file."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def rewrite(folder: Place, name: str, text: str, published: bool = True) -> None:
    """Changes a file as somebody would who makes the manifest agree with it, and `latest` with
    the manifest."""
    (folder.local / name).write_text(text)
    if name != files.MANIFEST:
        manifest = json.loads(folder.read(files.MANIFEST))
        manifest[name] = {"size": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        (folder.local / files.MANIFEST).write_text(json.dumps(manifest))
    if published:
        files.point(folder.parent, folder.name)


@pytest.mark.parametrize(
    "left_out",
    ["everything", "weights_00001.safetensors", "optimizer_00000.safetensors", "state.json", "config.json"],
)
@pytest.mark.parametrize("published", [True, False])
def test_a_manifest_that_does_not_list_every_file_vouches_for_none(tmp_path, left_out, published):
    """Flipped bits went on with status 0 where a file's entry was gone; a `latest` that a user has written
    says nothing of the manifest.
    """
    folder = write_checkpoint(tmp_path, 5, small_weights())
    if not published:
        folder.parent.write(files.LATEST, folder.name)
    flip(folder.local / "weights_00001.safetensors")
    manifest = json.loads(folder.read(files.MANIFEST))
    kept = (
        {}
        if left_out == "everything"
        else {name: entry for name, entry in manifest.items() if name != left_out}
    )
    rewrite(folder, files.MANIFEST, json.dumps(kept), published)
    wanted = "state.json" if left_out == "everything" else left_out
    with pytest.raises(
        CheckpointError, match=f"manifest.json does not list {wanted}|weights_00001.safetensors is damaged"
    ):
        contents.verify(folder)
    with pytest.raises(CheckpointError, match="does not list|is damaged"):
        load_weights(folder)


def test_a_manifest_that_was_not_published_is_noticed(tmp_path):
    """A file and its entry that were changed together, in the checkpoint that `latest` names."""
    folder = write_checkpoint(tmp_path, 5, small_weights())
    rewrite(folder, files.CONFIG, "{}", published=False)
    with pytest.raises(CheckpointError, match="manifest.json is not the published one"):
        contents.verify(folder)
    # as a user writes it: there is nothing to compare with
    folder.parent.write(files.LATEST, folder.name)
    contents.verify(folder)


def rewrite_tensors(
    folder: Place, name: str, change: Callable[[dict[str, Tensor], dict[str, int]], None]
) -> None:
    """Changes the tensors of a file, and where they begin, and makes manifest and `latest` agree."""
    file = TensorFile(lambda: folder.open(name), name)
    tensors = {tensor: file.read(tensor) for tensor in file.entries}
    starts = json.loads(file.metadata["starts"])
    change(tensors, starts)
    with folder.create(name) as out:
        writer = HashingWriter(out)
        write_tensors(writer, tensors, {"format": "flava_ds", "starts": json.dumps(starts)})
    manifest = json.loads(folder.read(files.MANIFEST)) | {name: writer.described()}
    (folder.local / files.MANIFEST).write_text(json.dumps(manifest))
    files.point(folder.parent, folder.name)


def change(name: str, to: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor], dict[str, int]], None]:
    """Returns what replaces a tensor by what is made of it."""
    return lambda tensors, starts: tensors.update({name: to(tensors[name])})


WEIGHTS, OPTIMIZER = "weights_00001.safetensors", "optimizer_00001.safetensors"
MISSHAPEN = {
    "shorter": (WEIGHTS, change("weight/a", lambda tensor: tensor[:-1].clone())),
    "longer": (WEIGHTS, change("weight/a", lambda tensor: torch.cat([tensor, tensor]))),
    "two dimensions": (WEIGHTS, change("weight/a", lambda tensor: tensor.reshape(2, -1))),
    "no dimension": (WEIGHTS, change("weight/scale", lambda tensor: tensor.reshape(()))),
    "integers": (WEIGHTS, change("weight/a", lambda tensor: tensor.to(torch.int64))),
    "a gap": (WEIGHTS, lambda tensors, starts: starts.update({"weight/a": 3})),
    "an overlap": (WEIGHTS, lambda tensors, starts: starts.update({"weight/a": 1})),
    "another name": (
        WEIGHTS,
        lambda tensors, starts: (
            tensors.update(b=tensors.pop("weight/a")),
            starts.update(b=starts.pop("weight/a")),
        ),
    ),
    "a start beyond any parameter": (WEIGHTS, lambda tensors, starts: starts.update({"weight/a": 2**63})),
    "no start": (WEIGHTS, lambda tensors, starts: starts.clear()),
    "a parameter's moment that is too long": (
        OPTIMIZER,
        lambda tensors, starts: (
            tensors.update({"exp_avg/a": torch.zeros(7)}),
            starts.update({"exp_avg/a": 0}),
        ),
    ),
    "a random state": (
        OPTIMIZER,
        lambda tensors, starts: tensors.update({"generator/cpu": torch.zeros(7, dtype=torch.uint8)}),
    ),
    "a random state of floats": (
        OPTIMIZER,
        lambda tensors, starts: tensors.update({"generator/cpu": torch.zeros(5056)}),
    ),
}


@pytest.mark.parametrize("form", MISSHAPEN)
def test_tensors_that_contradict_the_state_give_way_to_the_checkpoint_before(tmp_path, form):
    """Files, manifest and `latest` agree, so no checksum tells; most of these ended in a traceback."""
    before, folder = (write_checkpoint(tmp_path, step, small_weights()) for step in (5, 7))
    assert _newest_sound_alone([folder, before]) == folder
    rewrite_tensors(folder, *MISSHAPEN[form])
    assert _newest_sound_alone([folder, before]) == before
    with pytest.raises(CheckpointError) as caught:
        _newest_sound_alone([folder])
    assert "\n" not in str(caught.value) and "use another checkpoint" in str(caught.value)


def nested(depth: int = 100_000) -> str:
    return "[" * depth + "]" * depth


MALFORMED = {
    "no object": lambda state: [state],
    "step a text": lambda state: {**state, "step": "7"},
    "step a truth": lambda state: {**state, "step": True},
    "step endless": lambda state: {**state, "step": 10**18},
    "another step": lambda state: {**state, "step": 6},
    "no ranks": lambda state: {**state, "world_size": 0},
    "endless ranks": lambda state: {**state, "world_size": 10**8},
    "ranks a fraction": lambda state: {**state, "world_size": 2.5},
    "layout a list": lambda state: {**state, "layout": []},
    "skipped nothing": lambda state: {**state, "updates_skipped": {}},
    "updates texts": lambda state: {**state, "optimizer_updates": {"a": "1"}},
    "shapes numbers": lambda state: {**state, "parameters": {"a": 3}},
    "shapes negative": lambda state: {**state, "parameters": {"a": [-2, 3]}},
    "shapes endless": lambda state: {**state, "parameters": {"a": [10**9, 10**9]}},
    "buffers numbers": lambda state: {**state, "buffers": [1]},
    "scale incomplete": lambda state: {**state, "loss_scaler": {"cur_scale": 1.0}},
    "metric a number": lambda state: {**state, "metric": 3},
    "data a list": lambda state: {**state, "data": ["pair"]},
    "jumps numbers": lambda state: {**state, "data": {"pair": {"jumps": [1]}}},
    "spikes a text": lambda state: {**state, "spikes": "calm"},
    "recent numbers": lambda state: {**state, "spikes": {**state["spikes"], "recent": {"pair": 1}}},
    "a key gone": lambda state: {key: value for key, value in state.items() if key != "spikes"},
}


@pytest.mark.parametrize("form", MALFORMED)
def test_a_state_that_no_run_writes_gives_way_to_the_checkpoint_before(tmp_path, form):
    """Also where manifest and `latest` agree with it."""
    before, folder = (write_checkpoint(tmp_path, step, small_weights()) for step in (5, 7))
    rewrite(folder, files.STATE, json.dumps(MALFORMED[form](json.loads(folder.read(files.STATE)))))
    with pytest.raises(CheckpointError, match="state.json cannot be used|does not list weights_00002"):
        contents.verify(folder)
    assert _newest_sound_alone([folder, before]) == before


@pytest.mark.parametrize("name", [files.STATE, files.MANIFEST])
@pytest.mark.parametrize(
    "text",
    [
        nested(),
        '{"step": 1, "step": 2}',
        "7",
        "null",
        '"x"',
        "{",
        "",
        '{"a": {"size": "1", "sha256": 3}}',
        '{"..": {}}',
    ],
)
def test_any_json_in_their_place_is_an_error_in_one_line(tmp_path, name, text):
    folder = write_checkpoint(tmp_path, 5, small_weights())
    rewrite(folder, name, text)
    for use in (contents.verify, load_weights):
        with pytest.raises(CheckpointError):
            use(folder)


@pytest.mark.parametrize(
    "name",
    [
        "latest",
        "step_00000005/state.json",
        "step_00000005/manifest.json",
        "step_00000005/weights_00000.safetensors",
    ],
)
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, name, kind):
    folder = write_checkpoint(tmp_path, 5, small_weights())
    path = tmp_path / name
    path.unlink()
    os.mkfifo(path) if kind == "fifo" else path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError):
        if name == "latest":
            files.latest(Place(tmp_path))
        else:
            contents.verify(folder)


def _newest_sound_alone(folders: Iterable[Place]) -> Place | None:
    """Calls `newest_sound` without a process group; returns what it opened."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flava_ds.ranks.distributed.gather_objects", lambda world, value: [value])
        patch.setattr("flava_ds.checkpoints.checkpoint.from_main", lambda world, value: value)
        found = newest_sound(ALONE, iter(folders))
    if found is None:
        return None
    with contextlib.closing(found):
        return found.folder


def test_a_run_that_goes_back_reads_no_state_before_the_sound_one(tmp_path, monkeypatch):
    """All ranks wait while rank 0 reads; a run may keep hundreds of checkpoints."""
    folders = {step: write_checkpoint(tmp_path, step, small_weights()) for step in (1, 2, 3, 4, 5)}
    read, is_good = [], reader._is_good
    monkeypatch.setattr(reader, "_is_good", lambda folder: read.append(folder) or is_good(folder))
    good = reader.good_checkpoints(Place(tmp_path))
    assert not read, "other ranks than the first only pass it on"
    flip(folders[5].local / "weights_00001.safetensors")
    assert _newest_sound_alone(good) == folders[4] and read == [folders[5], folders[4]]
    assert _newest_sound_alone([]) is None
