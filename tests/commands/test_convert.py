"""A conversion overwrites neither what it reads nor a run nor another program's model."""

import pytest
from checkpoint_helpers import small_weights, write_checkpoint

from flava_ds import cli
from flava_ds.checkpoints.reader import write_weights


@pytest.mark.parametrize(
    ("source", "to", "out", "message"),
    [
        ("runs/a", "hf", "runs/a", "runs/a: is what is read, which would be overwritten"),
        ("runs/a", "hf", "runs/../link", "link: is what is read, which would be overwritten"),
        ("theirs", "flava_ds", "theirs", "theirs: is what is read, which would be overwritten"),
        ("runs/a", "hf", "runs/b", "runs/b: is a run, whose config.json would be overwritten"),
        ("theirs", "flava_ds", "bert", "bert: has a model of Hugging Face, which would be overwritten"),
        ("runs/a", "hf", "ours", "ours: has a model of flava_ds, which would be overwritten"),
        ("runs/a", "hf", "runs/c", "runs/c: is a run, whose config.json would be overwritten"),
        (
            "runs/a",
            "safetensors",
            "captions.csv",
            "captions.csv: is a file that would be overwritten, and no",
        ),
        ("runs/a", "hf", ".", ".: is a folder with other files, e.g. bert; name a new one"),
        ("theirs", "flava_ds", "data", "data: is a folder with other files, e.g. pairs.csv; name a new one"),
        ("runs/a", "hf", "runs/a/checkpoints", "runs/a/checkpoints belongs to a run's checkpoints"),
        ("runs/a", "safetensors", "runs/a/checkpoints/latest", "checkpoints belongs to a run's checkpoints"),
        (
            "runs/a",
            "safetensors",
            "runs/a/checkpoints/step_00000003/weights_00000.safetensors",
            "step_00000003 belongs to a run's checkpoints; name another place",
        ),
    ],
)
def test_nothing_of_a_run_is_overwritten(source, to, out, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for run in ("a", "b"):
        write_checkpoint(tmp_path / "runs" / run / "checkpoints", 3, small_weights(1.0))
        (tmp_path / "runs" / run / "config.json").write_text("{}")
    for file in (
        "captions.csv",
        "data/pairs.csv",
        "runs/c/config.json",
        "runs/c/environment.json",
        "theirs/config.json",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    for folder, text in {"bert": '{"model_type": "bert"}', "ours": '{"model": {}}'}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(text)
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "a")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert cli.main(["convert", source, "--to", to, out]) == 2
    assert message in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_other_places_are_written_and_written_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "runs" / "a" / "checkpoints", 3, small_weights(1.0))
    for name in ("latest", "manifest.json"):  # of something else
        (tmp_path / name).write_text("mine")
    for out in ("weights.safetensors", "weights.safetensors", "runs/a/weights.safetensors"):
        assert cli.main(["convert", "runs/a/checkpoints/step_00000003", "--to", "safetensors", out]) == 0
        assert (tmp_path / out).is_file()


@pytest.mark.parametrize(
    ("source", "to", "message"),
    [
        ("runs/a", "safetensors", "step_00000003 has no running average 'ema'; it has none"),
        ("weights.safetensors", "safetensors", "holds weights alone; give a run or a checkpoint with 'ema'"),
        ("runs/a", "flava_ds", "--average: only runs have averages; leave it out"),
    ],
)
def test_an_average_that_is_not_there_is_one_line(source, to, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    step = write_checkpoint(tmp_path / "runs" / "a" / "checkpoints", 3, small_weights(1.0))
    write_weights(step, tmp_path / "weights.safetensors")
    assert cli.main(["convert", source, "--to", to, "out.safetensors", "--average", "ema"]) == 2
    assert message in capsys.readouterr().err
