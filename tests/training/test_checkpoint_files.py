"""Checkpoints on disk: publishing, pruning, damage, and reading weights."""

import json

import pytest
import torch
from safetensors.torch import save_file

from flava_ds.errors import CheckpointError
from flava_ds.training import checkpoint_files as files


def write_checkpoint(run, step: int, value: float = 0.0):
    """Publishes a small checkpoint by the same calls as `checkpoint.save`."""
    final = run / files.FOLDER / files.name_of(step)
    temporary = final.with_name(final.name + ".tmp-1ranks")
    (temporary / "deepspeed").mkdir(parents=True)
    (temporary / "deepspeed" / "shard.pt").write_bytes(b"x" * 100)
    save_file({"a": torch.full((2, 3), value)}, temporary / files.WEIGHTS)
    files.publish(temporary, final, files.describe(temporary, files.files_of(temporary)))
    return final


def test_publish_points_latest_at_the_new_one_and_leaves_nothing_behind(tmp_path):
    assert files.latest(tmp_path) is None
    first, second = write_checkpoint(tmp_path, 100), write_checkpoint(tmp_path, 200)
    assert files.latest(tmp_path) == second and files.complete(tmp_path) == [first.name, second.name]
    assert sorted(path.name for path in (tmp_path / files.FOLDER).iterdir()) == ["latest", first.name, second.name]
    files.verify(second)


def test_prune_keeps_the_newest_and_what_latest_names(tmp_path):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
    (tmp_path / files.FOLDER / files.LATEST).write_text(files.name_of(1))
    files.prune(tmp_path, 2)
    assert files.complete(tmp_path) == [files.name_of(step) for step in (1, 3, 4)]


def test_leftovers_are_ignored_and_removed(tmp_path):
    final = write_checkpoint(tmp_path, 5)
    (final.parent / "step_00000006.tmp-2ranks" / "deepspeed").mkdir(parents=True)
    (final.parent / "latest.tmp-77").write_text("half")
    assert files.latest(tmp_path) == final and files.complete(tmp_path) == [final.name]
    assert files.remove_leftovers(tmp_path) == ["latest.tmp-77", "step_00000006.tmp-2ranks"]
    assert sorted(path.name for path in final.parent.iterdir()) == ["latest", final.name]


@pytest.mark.parametrize("name", ["step_00000009", "../elsewhere", ""])
def test_a_wrong_latest_is_named(tmp_path, name):
    write_checkpoint(tmp_path, 5)
    (tmp_path / files.FOLDER / files.LATEST).write_text(name)
    with pytest.raises(CheckpointError, match="latest names '.*step_00000005"):
        files.latest(tmp_path)


def test_damage_is_named(tmp_path):
    final = write_checkpoint(tmp_path, 5)
    shard = final / "deepspeed" / "shard.pt"
    shard.write_bytes(b"x" * 60)
    with pytest.raises(CheckpointError, match="shard.pt is damaged: 60 bytes instead of 100"):
        files.verify(final)
    shard.write_bytes(b"x" * 99 + b"y")
    with pytest.raises(CheckpointError, match="shard.pt is damaged: its sha256 differs"):
        files.verify(final)
    shard.unlink()
    with pytest.raises(CheckpointError, match="shard.pt is missing"):
        files.verify(final)


def test_a_manifest_cannot_point_outside(tmp_path):
    final = write_checkpoint(tmp_path, 5)
    manifest = json.loads((final / files.MANIFEST).read_text())
    (final / files.MANIFEST).write_text(json.dumps({"../../secret": manifest["model.safetensors"]}))
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        files.verify(final)
    (final / files.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        files.verify(final)


def test_weights_are_found_from_every_side(tmp_path):
    final = write_checkpoint(tmp_path, 5, value=7.0)
    for path in (final / files.WEIGHTS, final, final.parent, tmp_path):
        assert torch.equal(files.load_weights(path)["a"], torch.full((2, 3), 7.0))
    with pytest.raises(CheckpointError, match="holds no model.safetensors"):
        files.load_weights(tmp_path / "nothing")


def test_damaged_weights_are_refused(tmp_path):
    final = write_checkpoint(tmp_path, 5)
    weights = final / files.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        files.load_weights(final)
    (tmp_path / "alone.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(CheckpointError, match="alone.safetensors is no readable"):
        files.load_weights(tmp_path / "alone.safetensors")


def test_shapes_are_compared_by_name():
    files.check_shapes({"a": (2,), "more": (1,)}, {"a": (2,)}, "file")
    with pytest.raises(CheckpointError, match=r"'b' is \[2, 3\], but this configuration's model has \[3, 2\]"):
        files.check_shapes({"a": (2,), "b": (2, 3)}, {"a": (2,), "b": (3, 2)}, "file")
    with pytest.raises(CheckpointError, match="no tensor 'c'"):
        files.check_shapes({"a": (2,)}, {"c": (2,)}, "file")


def test_an_earlier_run_is_set_aside_not_deleted(tmp_path):
    assert files.set_aside(tmp_path) is None
    write_checkpoint(tmp_path, 5)
    (tmp_path / "log.jsonl").write_text("{}\n")
    moved = files.set_aside(tmp_path)
    assert moved.name == "previous_1" and files.latest(tmp_path) is None
    assert files.latest(moved) is not None and (moved / "log.jsonl").is_file()
