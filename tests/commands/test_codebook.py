"""`flava-ds codebook` and the slips that stop it before anything is read."""

import dataclasses
from pathlib import Path

import pytest
from data.shard_files import picture, write_tar

from flava_ds import cli
from flava_ds.codebook.config import CodebookTrainingConfig, preset_of
from flava_ds.commands.codebook import picture_source
from flava_ds.errors import DataError
from flava_ds.recipes import resolve


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder with one shard of pictures."""
    (tmp_path / "shards").mkdir()
    write_tar(
        tmp_path / "shards" / "00000.tar",
        [(f"{number:05d}.webp", picture(number, 48)) for number in range(40)],
    )
    return tmp_path / "shards"


def test_train_then_encode(pictures, tmp_path, capsys):
    weights, coded = tmp_path / "codebook.safetensors", tmp_path / "coded"
    words = ["--recipe", "flava_debug", "--total-steps", "2", "--batch-size", "4", "--precision", "fp32"]
    assert cli.main(["codebook", "train", str(pictures), "--out", str(weights), *words]) == 0
    plan, printed = capsys.readouterr().out.split("\n", 2)[1:]
    assert plan.startswith("36 pictures of 32 px to learn from, 4 held out; 64 codes, a grid of 4 x 4")
    assert "2 steps of 4, 0.2 epochs" in plan and "step 2/2" in printed and weights.is_file()
    assert (
        cli.main(
            [
                "codebook",
                "encode",
                str(pictures),
                "--codebook",
                str(weights),
                "--out",
                str(coded),
                "--recipe",
                "flava_debug",
            ]
        )
        == 0
    )
    assert "40 codes" in capsys.readouterr().out and (coded / "00000.tar").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "SHARDS", "--out", "x", "--total-stps", "3"],
            "unknown option '--total-stps'; did you mean '--total-steps'?",
        ),
        (["train", "gone", "--out", "x"], "no folder or .tar at 'gone'"),
        (["train", "SHARDS"], "--out FILE is missing"),
        (["train", "SHARDS", "--out", "x", "--preset", "tiny"], "--preset tiny: choose one of small, dalle"),
        (["train", "SHARDS", "--out", "x", "--presett", "small"], "did you mean '--preset'?"),
        (["train", "SHARDS", "--out", "x", "--save-seconds", "0"], "--save-seconds 0: use more than 0"),
        (["train", "SHARDS", "--out", "x", "--recipe", "dem"], "no recipe named 'dem'; did you mean 'demo'?"),
        (["encode", "SHARDS", "--out", "x", "--codebook", "gone"], "--codebook gone: no such file"),
        (["encode", "SHARDS", "--out", "x", "--codebook", "gone", "--fast"], "unknown argument --fast"),
    ],
)
def test_slips_are_one_line(pictures, words, message, capsys):
    try:
        status = cli.main(["codebook", *(str(pictures) if word == "SHARDS" else word for word in words)])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_source_takes_the_recipes_transform(pictures):
    config = resolve("demo", [])
    source = picture_source(config, str(pictures))
    assert (source.kind, source.shards) == ("image", str(pictures))
    assert (
        source.transform
        == next(each for each in config.data.sources.values() if each.kind == "image").transform
    )
    with pytest.raises(DataError):
        picture_source(config, str(pictures / "gone"))


def test_help_describes_every_setting_with_both_presets(capsys):
    assert cli.main(["codebook", "train", "--help"]) == 0
    words = capsys.readouterr().out
    for field in dataclasses.fields(CodebookTrainingConfig):
        described = words.split(f"  --{field.name.replace('_', '-')} ")[1].splitlines()
        assert len(described[1].strip()) > 10, field.name
    assert "--total-steps        5000 | 3000000\n" in words and "--preset PRESET" in words


def test_the_preset_follows_the_vocabulary_unless_it_is_named():
    assert (preset_of(512), preset_of(8192)) == ("small", "dalle")


def test_a_source_without_images_lends_the_transform_of_its_pairs(pictures):
    config = resolve("flava_tiny", [])
    source = picture_source(config, str(pictures))
    assert (source.kind, source.transform) == ("image", config.data.sources["pairs"].transform)
