"""`flava-ds prepare` as a user runs it."""

import json

import pytest
from data.shard_files import picture
from own_photos import write_photos, write_texts
from test_cli import status_of

from flava_ds.commands.prepare.corpus import describe
from flava_ds.prepare import check
from flava_ds.prepare.corpora import CORPORA
from flava_ds.prepare.shard_writer import Counts


@pytest.fixture
def sbu(tmp_path, monkeypatch):
    """SBU with one image of two, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(picture(1))
    (tmp_path / "sbu.json").write_text(
        json.dumps(
            {"image_urls": ["http://x/1.jpg", "http://x/2.jpg"], "captions": ["a red car", "a blue car"]}
        )
    )


def test_converts_and_prints_the_papers_count_beside_its_own(sbu, capsys):
    assert status_of(["prepare", "sbu", "sbu.json", "--images", "images", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "SBU Captions: 1 samples from 2 entries" in printed and "left out: no image file 1" in printed
    assert [line.split() for line in printed.splitlines()[1:4]] == [
        ["pairs", "words", "each"],
        ["found", "1", "3.0"],
        ["paper,", "Table", "2", "1.0", "M", "12.1"],
    ]
    assert status_of(["prepare", "index", "out"]) == 0 and "1 shard, 1 sample;" in capsys.readouterr().out
    assert (
        status_of(["prepare", "sbu", "--shards", "out"]) == 0
        and "nothing written; train on out as it is" in capsys.readouterr().out
    )


def test_writes_the_list_for_a_download(sbu, tmp_path, capsys):
    assert status_of(["prepare", "sbu", "sbu.json", "--urls", "urls.tsv"]) == 0
    assert (tmp_path / "urls.tsv").read_text().splitlines()[1] == "http://x/1.jpg\ta red car\tsbu-0000000"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["coco"],
            (
                "prepare coco: give the published annotations (captions_train2014.json "
                "captions_val2014.json), or --shards"
            ),
        ),
        (["sbu", "sbu.json", "--shards", "out"], "give the published annotations"),
        (["sbu", "sbu.json", "--images", "images"], "prepare sbu: give --out FOLDER, or --urls FILE"),
        (
            ["sbu", "sbu.json", "--urls", "a.tsv", "--out", "b"],
            "--urls writes a list from annotations; leave out --shards and --out",
        ),
        (
            ["sbu", "sbu.json", "--out", "b", "--images", "images", "--samples-per-shard", "0"],
            "--samples-per-shard 0: use at least 1",
        ),
        (["sbu", "sbu.json", "--out", "b"], "give --images FOLDER, or --shards for what img2dataset wrote"),
        (["sbu", "gone.json", "--images", "images", "--out", "b"], "sbu: 'gone.json' does not exist"),
        (["imagenet", "images", "--images", "images"], "unknown argument --images"),
        (["check", "images", "--samples", "-1"], "--samples -1: use at least 1, or 0 for all"),
        (["cocoo"], "did you mean 'coco'?"),
    ],
)
def test_slip_is_one_line_and_status_2(sbu, words, message, capfd):
    assert status_of(["prepare", *words]) == 2
    printed = capfd.readouterr()
    assert (
        message in printed.err
        and printed.err.startswith("error: ")
        and printed.err.count("\n") == 1
        and printed.out == ""
    )


def test_description_of_images_counts_samples():
    text = describe(CORPORA["imagenet"], Counts(entries=3, samples=2))
    assert [line.split() for line in text.splitlines()[1:4]] == [
        ["images", "words", "each"],
        ["found", "2", "-"],
        ["published", "1,281,167", "-"],
    ]


def test_debug_shows_the_traceback_after_an_action(sbu, capfd):
    assert status_of(["prepare", "sbu", "gone.json", "--out", "b", "--images", "images", "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_check_names_every_place(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "_TIMED_S", 1e-9)
    places = [str(tmp_path / name) for name in ("pairs", "words")]
    write_photos(tmp_path / "pairs" / "00000.tar", 4)
    write_texts(tmp_path / "words" / "00000.tar", [5, 6])
    words = ["prepare", "check", *places, "--recipe", "flava_debug", "--json", str(tmp_path / "found.json")]
    assert status_of(words) == 1  # a step of the recipe draws 16
    printed = capsys.readouterr().out
    assert printed.count("STOP  a run of flava_debug would end with: source '") == 2
    assert f"{places[0]}: 4 pair samples in 1 shard," in printed and f"{places[1]}: 2 text samples" in printed
    assert [found["place"] for found in json.loads((tmp_path / "found.json").read_text())] == places
    assert status_of([*words, "--html", str(tmp_path / "page.html")]) == 2
    assert "--html is of one place; give one of" in capsys.readouterr().err
    assert status_of(["prepare", "index", str(tmp_path)]) == 2
    assert f"holds no .tar file; {places[0]}, {places[1]} do; give a folder" in capsys.readouterr().err
