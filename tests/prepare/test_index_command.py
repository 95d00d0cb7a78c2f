"""`prepare index`: what it prints, what it compares, what it refuses."""

import os
import shutil

import pytest
from data.shard_files import pair_members, write_tar

from flava_ds.errors import DataError
from flava_ds.prepare.index import build_indexes
from flava_ds.storage.index import load_index


@pytest.fixture
def shards(tmp_path):
    """A folder of two shards."""
    write_tar(tmp_path / "00000.tar", pair_members(range(3)))
    write_tar(tmp_path / "00001.tar", pair_members(range(3, 5)))
    return tmp_path


def test_counts_and_checksums_several_places_and_overlaps_once(shards, capsys):
    build_indexes([str(shards / "00000.tar"), str(shards), str(shards / "{00000..00001}.tar")])
    both = "2 shards, 5 samples; members: json 5, txt 5, webp 5; damage: none"
    assert capsys.readouterr().out.splitlines() == [
        f"{shards}/00000.tar: 1 shard, 3 samples; members: json 3, txt 3, webp 3; damage: none",
        f"{shards}: {both}",
        f"{shards}/{{00000..00001}}.tar: {both}",
        f"all, each shard once: {both}",
    ]
    assert load_index(shards / "00001.tar").checksum
    build_indexes([str(shards / "00000.tar")], checksum=False)


def test_differences_from_img2dataset_are_counted_and_named(shards, capsys):
    (shards / "00000_stats.json").write_text('{"count": 9, "successes": 3}')
    (shards / "00001_stats.json").write_text('{"count": 9, "successes": 4}')
    build_indexes([str(shards)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "2 have a report of img2dataset; 1 difference from it"
    assert printed[2].endswith("00001.tar: 2 samples, but its _stats.json counts 4 successes")


def test_indexes_that_are_not_beside_their_shards_are_named(shards, capsys, caplog, monkeypatch):
    cache = shards / "cache"
    monkeypatch.setenv("FLAVA_DS_CACHE", str(cache))
    (shards / "00001.tar.index.npz").mkdir()  # a folder in the way refuses the rename, for root too
    build_indexes([str(shards)])
    elsewhere = f"1 of 2 indexes are kept in '{cache}/index', as the folder of their shards cannot be written"
    assert capsys.readouterr().out.splitlines()[1:] == [elsewhere]
    shutil.rmtree(cache)
    cache.write_text("no folder")
    load_index(shards / "00001.tar")  # as a run does
    build_indexes([str(shards)])
    assert not capsys.readouterr().out.splitlines()[1:]
    of_a_run, said = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert of_a_run.startswith("1 of 1 indexes can be kept nowhere")
    assert said.startswith("1 of 2 indexes can be kept nowhere") and "FLAVA_DS_CACHE" in said


def test_damaged_shards_are_named(shards, capsys):
    path = shards / "00001.tar"
    path.write_bytes(path.read_bytes()[:1500])
    build_indexes([str(shards)])
    assert capsys.readouterr().out.splitlines()[1:] == [f"  {path}: truncated shard 1"]


def test_verify_finds_content_that_changed_behind_its_time(shards, capsys):
    build_indexes([str(shards)])
    build_indexes([str(shards)], verify=True)
    assert capsys.readouterr().out.endswith("damage: none; 2 agree with their checksum\n")
    path = shards / "00001.tar"
    stat = path.stat()
    with path.open("r+b") as stream:
        stream.seek(load_index(path).member_offset[0] + 20)
        stream.write(b"rot")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    build_indexes([str(shards)])
    with pytest.raises(DataError, match="1 shard of another checksum, .*00001.tar"):
        build_indexes([str(shards)], verify=True)


def test_verify_counts_only_what_had_a_checksum(shards, capsys):
    build_indexes([str(shards)], checksum=False)
    build_indexes([str(shards)], verify=True)
    assert "0 agree with their checksum" in capsys.readouterr().out
