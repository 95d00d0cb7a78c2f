"""Reading checkpoints without an engine: whole weights from every side, and damage named."""

import json
from pathlib import Path

import fsspec
import pytest
import torch
from checkpoint_helpers import UNEVENTFUL, small_weights, write_checkpoint
from safetensors.torch import load_file, save_file
from sample_batches import tiny_config

from flava_ds import config as configuration
from flava_ds.checkpoints import contents, files, reader
from flava_ds.checkpoints.place import Place
from flava_ds.config import CheckpointConfig, LoggingConfig
from flava_ds.errors import CheckpointError
from flava_ds.storage.files import FIRST_BYTES, RemoteFile


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def test_weights_are_found_from_every_side(tmp_path):
    final = write_checkpoint(tmp_path / files.FOLDER, 5, small_weights(7.0))
    for path in (final, final.local, tmp_path / files.FOLDER, tmp_path, str(tmp_path)):
        assert same(reader.load_weights(path), small_weights(7.0))
    save_file(small_weights(3.0), tmp_path / "foreign.safetensors")
    assert same(reader.load_weights(tmp_path / "foreign.safetensors"), small_weights(3.0))
    (tmp_path / "folder").mkdir()
    save_file(small_weights(4.0), tmp_path / "folder" / "model.safetensors")
    assert same(reader.load_weights(tmp_path / "folder"), small_weights(4.0))
    with pytest.raises(CheckpointError, match="holds neither a checkpoint nor model.safetensors"):
        reader.load_weights(tmp_path / "nothing")


def test_weights_of_a_run_are_found_in_object_storage(tmp_path):
    config = tiny_config(
        logging=LoggingConfig(run_directory=str(tmp_path)),
        checkpoint=CheckpointConfig(directory="memory://bucket/runs"),
    )
    config.run_path.mkdir()
    configuration.save(config, config.run_path / "config.json")
    try:
        write_checkpoint(Place(f"memory://bucket/runs/{config.name}"), 5, small_weights(7.0), config)
        for path in (
            config.run_path,
            f"memory://bucket/runs/{config.name}",
            f"memory://bucket/runs/{config.name}/step_00000005",
        ):
            assert same(reader.load_weights(path), small_weights(7.0))
    finally:
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_one_file_of_weights_is_what_the_library_reads(tmp_path):
    write_checkpoint(tmp_path / files.FOLDER, 5, small_weights(7.0))
    reader.write_weights(tmp_path, tmp_path / "out" / "whole.safetensors")
    assert same(load_file(tmp_path / "out" / "whole.safetensors"), small_weights(7.0))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole.safetensors"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        reader.write_weights(tmp_path, tmp_path / "out" / "whole.safetensors" / "under_a_file")


def test_damage_is_named(tmp_path):
    final = write_checkpoint(tmp_path, 5, small_weights())
    path = final.local / contents.weights_name(1)
    intact = path.read_bytes()
    path.write_bytes(intact[:-4])
    with pytest.raises(
        CheckpointError,
        match=f"weights_00001.safetensors is damaged: {len(intact) - 4} bytes instead of {len(intact)}",
    ):
        reader.load_weights(final)
    path.write_bytes(intact[:-1] + b"y")
    with pytest.raises(CheckpointError, match="weights_00001.safetensors is damaged: its sha256 differs"):
        reader.load_weights(final)
    path.unlink()
    with pytest.raises(CheckpointError, match="weights_00001.safetensors is missing"):
        reader.load_weights(final)
    path.write_bytes(intact)
    (final.local / contents.optimizer_name(0)).unlink()
    assert same(reader.load_weights(final), small_weights())  # weights alone need no moments
    with pytest.raises(CheckpointError, match="optimizer_00000.safetensors is missing"):
        contents.verify(final)


def test_a_manifest_cannot_point_outside(tmp_path):
    final = write_checkpoint(tmp_path, 5, small_weights())
    manifest = json.loads(final.read(files.MANIFEST))
    for name in ("../../secret", "/etc/passwd", "sub/file"):
        final.write(files.MANIFEST, json.dumps({name: manifest["state.json"]}))
        with pytest.raises(CheckpointError, match="outside the checkpoint"):
            contents.verify(final)
    final.remove(files.MANIFEST)
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        contents.verify(final)


def test_more_files_than_may_be_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MOST_OPEN_FILES", 1)
    write_checkpoint(tmp_path, 5, small_weights(7.0))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert same(reader.load_weights(tmp_path), small_weights(7.0))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_headers_in_object_storage_are_small_reads(monkeypatch):
    """Of four files of 3 MiB, only the beginnings are read to see what they hold; then what is wanted."""
    asked: list[int] = []
    pread = RemoteFile.pread
    monkeypatch.setattr(
        RemoteFile, "pread", lambda file, size, at: asked.append(size) or pread(file, size, at)
    )
    weights = {"a": torch.arange(1.5 * 2**20)}
    final = write_checkpoint(Place("memory://bucket/run"), 5, weights)
    try:
        checkpoint = reader.CheckpointReader(final)
        checkpoint.check_parts()
        assert asked == [FIRST_BYTES] * 4
        assert torch.equal(checkpoint.read("weight", "a", 2**20, 7), weights["a"][2**20 : 2**20 + 7])
        assert torch.equal(checkpoint.weights()["a"], weights["a"])
        assert len(asked) < 10
        checkpoint.close()
    finally:
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_of_a_header_nothing_is_kept_but_where_the_parts_are(tmp_path):
    """A checkpoint of 512 ranks has millions of parts; an entry with a name for each took 1.25 GiB."""
    weights = {f"{'long.' * 20}{number}": torch.zeros(3) for number in range(500)}
    checkpoint = reader.CheckpointReader(write_checkpoint(tmp_path, 5, weights))
    checkpoint.check_parts()
    files_read = checkpoint._files.values()
    assert len(files_read) == 4 and not any(file.entries or file.metadata for file in files_read)
    assert torch.equal(checkpoint.weights()[f"{'long.' * 20}7"], torch.zeros(3))
    checkpoint.close()


def test_elements_that_no_file_has_are_counted(tmp_path):
    final = write_checkpoint(tmp_path, 5, small_weights())
    checkpoint = reader.CheckpointReader(final)
    assert torch.equal(checkpoint.read("weight", "a", 1, 4), torch.zeros(4))
    with pytest.raises(CheckpointError, match=r"6 of 6 elements of 'a' \(exp_avg\) are in none of its files"):
        checkpoint.read("exp_avg", "a", 0, 6)
    checkpoint.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"parameters": None}, "state.json"), ({"world_size": 1}, r"4 of 6 elements of 'a' \(weight\)")],
)
def test_a_state_that_does_not_fit_its_files_is_refused(tmp_path, change, said):
    final = write_checkpoint(tmp_path, 5, small_weights(), **change)
    with pytest.raises(CheckpointError, match=said):
        reader.load_weights(final)


def test_a_file_that_is_no_tensor_file_is_refused(tmp_path):
    (tmp_path / "alone.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(CheckpointError, match="alone.safetensors is not a readable"):
        reader.load_weights(tmp_path / "alone.safetensors")


def test_shapes_are_compared_by_name():
    reader.check_shapes({"a": (2,), "more": (1,)}, {"a": (2,)}, "file")
    with pytest.raises(
        CheckpointError, match=r"'b' is \[2, 3\], but this configuration's model has \[3, 2\]"
    ):
        reader.check_shapes({"a": (2,), "b": (2, 3)}, {"a": (2,), "b": (3, 2)}, "file")
    with pytest.raises(CheckpointError, match="no tensor 'c'"):
        reader.check_shapes({"a": (2,)}, {"c": (2,)}, "file")


def test_a_scalar_may_be_kept_as_a_vector_of_one():
    """A run keeps it so; a model that was just built has the scalar."""
    reader.check_shapes({"scale": (1,)}, {"scale": ()}, "file", of_parameters=True)
    with pytest.raises(CheckpointError, match=r"'scale' is \[2\], but this configuration's model has \[\]"):
        reader.check_shapes({"scale": (2,)}, {"scale": ()}, "file", of_parameters=True)
    with pytest.raises(CheckpointError, match=r"'count' is \[1\], but this"):  # of a training state
        reader.check_shapes({"count": (1,)}, {"count": ()}, "file")


def test_the_newest_good_one_is_this_runs(tmp_path):
    """Not one that diverged, nor one behind which somebody has gone back by writing an older name into
    `latest`.
    """
    quiet = UNEVENTFUL["spikes"]
    calm = quiet, UNEVENTFUL["updates_skipped"]
    states = {2: calm, 4: calm, 6: ({**quiet, "calm": False}, calm[1]), 8: calm}
    for step, (spikes, skipped) in states.items():
        write_checkpoint(tmp_path, step, small_weights(), spikes=spikes, updates_skipped=skipped)
    assert next(reader.good_checkpoints(Place(tmp_path))).name == files.name_of(8)
    Place(tmp_path).write(files.LATEST, files.name_of(6))
    assert next(reader.good_checkpoints(Place(tmp_path))).name == files.name_of(4)


def test_a_good_one_that_is_being_deleted_is_passed_over(tmp_path):
    """Although the run remembers it as complete, and its state can be read."""
    place, seen = Place(tmp_path), files.Seen()
    first, second = (write_checkpoint(place, step, small_weights()) for step in (2, 4))
    assert next(reader.good_checkpoints(place, seen)) == second
    second.remove(files.MANIFEST)
    assert next(reader.good_checkpoints(place, seen)) == first
