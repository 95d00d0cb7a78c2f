"""Skip lists made from evaluation images: what a user does with COCO's and Flickr30k's test images."""

import hashlib
import json

import numpy as np
import pytest
from data.shard_files import encode, write_tar
from data.test_skip_list import scene
from test_cli import status_of

from flava_ds.config import Config, SourceConfig
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.skip_list import load_skip_list
from flava_ds.errors import DataError
from flava_ds.prepare.skip_list import BITS, write_skip_list
from flava_ds.storage.faults import SampleFault

NAMES = {number: f"COCO_val2014_{number:012d}.jpg" for number in (391895, 60623, 483108)}


@pytest.fixture
def images(tmp_path):
    """Three images of COCO and Karpathy's file, which puts the first two into test and val."""
    (tmp_path / "val2014").mkdir()
    for number, name in NAMES.items():
        (tmp_path / "val2014" / name).write_bytes(encode(np.asarray(scene(number)), "jpeg", quality=95))
    splits = dict(zip(NAMES, ("test", "val", "restval"), strict=True))
    entries = [
        {
            "filepath": "val2014",
            "sentids": [1],
            "filename": NAMES[number],
            "imgid": place,
            "split": split,
            "sentences": [],
            "cocoid": number,
        }
        for place, (number, split) in enumerate(splits.items())
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return tmp_path


def test_list_of_a_split_has_keys_and_hashes(images):
    entries = write_skip_list(
        [str(images / "val2014")], images / "skip.txt", split_file=images / "dataset_coco.json"
    )
    found, data = load_skip_list(images / "skip.txt"), (images / "val2014" / NAMES[391895]).read_bytes()
    assert (
        entries == 3
        and found.keys == {"000000391895"}
        and found.digests == {hashlib.sha256(data).hexdigest()}
        and found.distances.tolist() == [BITS]
    )


def test_flickr_has_no_keys_and_missing_images_are_named(images):
    entries = [
        {"filename": f"{number}.jpg", "imgid": number, "split": "test", "sentences": []}
        for number in (1000092795, 10002456)
    ]
    (images / "dataset_flickr30k.json").write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))
    (images / "flickr").mkdir()
    (images / "flickr" / "10002456.jpg").write_bytes(encode(np.asarray(scene(5)), "jpeg"))
    with pytest.raises(DataError, match="1 of 2 images of test are not in .*, e.g. 1000092795.jpg"):
        write_skip_list(
            [str(images / "flickr")], images / "skip.txt", split_file=images / "dataset_flickr30k.json"
        )
    (images / "flickr" / "1000092795.jpg").write_bytes(b"no picture")
    write_skip_list(
        [str(images / "flickr")], images / "skip.txt", split_file=images / "dataset_flickr30k.json"
    )
    found = load_skip_list(images / "skip.txt")
    assert (len(found.keys), len(found.digests), len(found.hashes)) == (0, 2, 1)


def test_list_from_shards_finds_copies_that_a_download_made(images):
    """The list is made from shards of originals; the training shards hold one of them reduced and encoded
    anew under another name.
    """
    write_tar(
        images / "test.tar",
        [
            member
            for n in NAMES
            for member in ((f"{n}.jpg", (images / "val2014" / NAMES[n]).read_bytes()), (f"{n}.txt", b"a"))
        ],
    )
    assert write_skip_list([str(images / "test.tar")], images / "skip.txt") == 6
    copy, other = (
        encode(np.asarray(scene(number).resize((213, 160))), "jpeg", quality=80) for number in (60623, 7)
    )
    write_tar(
        images / "train.tar", [("x.jpg", copy), ("x.txt", b"copy"), ("y.jpg", other), ("y.txt", b"other")]
    )
    train = SourceConfig(kind="pair", shards=str(images / "train.tar"), skip_list=str(images / "skip.txt"))
    source = IndexedShards(Config(name="t").with_sources({"train": train}), "train")
    with pytest.raises(SampleFault, match=r"skip list \(phash\)"):
        source.decode(source.read(0), 0, 0)
    assert source.decode(source.read(1), 1, 0).text == "other"


def test_names_cannot_write_to_the_terminal(tmp_path, caplog):
    write_tar(
        tmp_path / "0.tar", [("\x1b[2Ja.jpg", encode(np.asarray(scene(0)), "jpeg")), ("\x1b[2Jb.jpg", b"")]
    )
    assert write_skip_list([str(tmp_path / "0.tar")], tmp_path / "skip.txt") == 3
    assert all(
        line.isprintable() for line in [*(tmp_path / "skip.txt").read_text().splitlines(), *caplog.messages]
    )


def test_command_lists_keys_alone(images, monkeypatch, capsys):
    monkeypatch.chdir(images)
    assert (
        status_of(
            [
                "prepare",
                "skiplist",
                "--split-file",
                "dataset_coco.json",
                "--splits",
                "test",
                "val",
                "--out",
                "keys.txt",
            ]
        )
        == 0
    )
    assert "keys.txt: 2 entries" in capsys.readouterr().out
    found = load_skip_list(images / "keys.txt")
    assert found.keys == {"000000391895", "000000060623"} and not found.reads_images


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x"], "prepare skiplist: give folders of IMAGES, or --split-file"),
        (["val2014", "--out", "x", "--bits", "64"], "--bits 64: use 0 to 31"),
        (["empty", "--out", "x"], "folder 'empty' holds no webp, jpg, jpeg, png file"),
        (
            ["--split-file", "dataset_coco.json", "--splits", "tset", "--out", "x"],
            "has no image of tset; its splits are restval, test, val",
        ),
    ],
)
def test_slip_is_one_line(images, monkeypatch, capfd, words, message):
    monkeypatch.chdir(images)
    (images / "empty").mkdir()
    assert status_of(["prepare", "skiplist", *words]) == 2
    assert message in capfd.readouterr().err
