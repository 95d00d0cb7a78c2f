"""`flava-ds codebook` and the slips that stop it before anything is read."""

from pathlib import Path

import pytest
from data.shard_files import picture, write_tar

from flava_ds import cli
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
    assert "step 2/2" in capsys.readouterr().out and weights.is_file()
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
        (["train", "SHARDS", "--out", "x", "--recipe", "dem"], "no recipe named 'dem'; did you mean 'demo'?"),
        (["encode", "SHARDS", "--out", "x", "--codebook", "gone"], "--codebook gone: no such file"),
        (["encode", "SHARDS", "--out", "x", "--codebook", "gone", "--fast"], "unknown argument --fast"),
    ],
)
def test_slips_are_one_line(pictures, words, message, capsys):
    assert cli.main(["codebook", *(str(pictures) if word == "SHARDS" else word for word in words)]) == 2
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
