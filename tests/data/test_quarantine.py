"""Unusable samples are listed once, over ranks, epochs and restarts, and a skip list made of them changes no
batch.
"""

import json
import os
from dataclasses import replace

import pytest
import torch
from data.shard_files import pair_members

from flava_ds import cli
from flava_ds.data import skip_list
from flava_ds.data.loader import StepLoader
from flava_ds.data.quarantine import Quarantine, quarantine_file, read_quarantine, skip_list_lines
from flava_ds.data.skip_list import load_skip_list
from flava_ds.errors import DataError

BAD = ("000000007", "key 10 #%\n")


@pytest.fixture
def damaged(make_config, make_shard, tmp_path):
    """Thirty pairs in two shards; two pictures are none, and one of their keys is hard to write down."""
    members = [(name.replace("000000020", BAD[1]), data) for name, data in pair_members(range(30))]
    members = [
        (name, b"no picture" if name in (f"{BAD[0]}.webp", f"{BAD[1]}.webp") else data)
        for name, data in members
    ]
    make_shard("damaged/0.tar", members[:45])
    make_shard("damaged/1.tar", members[45:])
    config = make_config(training={"total_steps": 20})
    source = replace(config.data.sources["pairs"], shards=str(tmp_path / "damaged"), max_skipped_share=0.5)
    return config.with_sources({"pairs": source})


def run(config, folder, rank=0, world_size=1, start=0):
    loader = StepLoader(config, rank, world_size, start)
    loader.quarantine = Quarantine(quarantine_file(folder, rank))
    return [batch for (batch,) in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_is_listed_once_over_epochs_and_restarts(damaged, tmp_path, workers):
    config = replace(damaged, data=replace(damaged.data, num_workers=workers))
    batches = run(config, tmp_path)
    assert sum(batch.read.skipped.get("undecodable", 0) for batch in batches) > 4
    entries = read_quarantine(tmp_path)
    assert {entry["key"] for entry in entries} == set(BAD) and len(
        quarantine_file(tmp_path, 0).read_text().splitlines()
    ) == 2
    for entry in entries:
        assert (
            entry["source"] == "pairs"
            and entry["reason"] == "undecodable"
            and entry["epoch"] == 0
            and "PNG and WebP" in entry["detail"]
        )
        with open(entry["shard"], "rb") as shard:
            shard.seek(entry["offset"])
            assert shard.read(10) == b"no picture"
        first = next(
            step
            for step, batch in enumerate(batches)
            if any(found["key"] == entry["key"] for found in batch.read.unusable)
        )
        assert entry["step"] == first
    run(config, tmp_path, start=5)
    assert read_quarantine(tmp_path) == entries


def test_ranks_are_merged_and_the_list_changes_no_batch_but_spares_the_attempt(damaged, tmp_path, capsys):
    before = [run(damaged, tmp_path / "runs" / "x", rank, 2) for rank in range(2)]
    out = tmp_path / "bad.txt"
    assert (
        cli.main(
            ["prepare", "skiplist", "--from-quarantine", str(tmp_path / "runs" / "x"), "--out", str(out)]
        )
        == 0
    )
    assert "2 entries (undecodable 2)" in capsys.readouterr().out
    config = damaged.with_sources({"pairs": replace(damaged.data.sources["pairs"], skip_list=str(out))})
    after = [run(config, tmp_path / "runs" / "y", rank, 2) for rank in range(2)]
    for ours, theirs in zip(sum(before, []), sum(after, []), strict=True):
        assert ours.keys == theirs.keys and torch.equal(ours["pixel_values"], theirs["pixel_values"])
        assert sum(ours.read.skipped.values()) == theirs.read.skipped.get("skip list", 0) and set(
            theirs.read.skipped
        ) <= {"skip list"}
    with pytest.raises(DataError, match="holds no list: the run met no unusable sample"):
        read_quarantine(tmp_path / "runs" / "y")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_stops_a_run_is_listed_too(damaged, make_shard, tmp_path, workers):
    make_shard(
        "damaged/0.tar",
        [(name, b"none" if name.endswith("webp") else data) for name, data in pair_members(range(30))],
    )
    (tmp_path / "damaged" / "1.tar").unlink()
    config = replace(damaged, data=replace(damaged.data, num_workers=workers))
    with pytest.raises(DataError, match="unusable"):
        run(config, tmp_path)
    assert len(read_quarantine(tmp_path)) > 15


def test_the_list_is_bounded_and_half_a_line_is_passed_over(tmp_path, caplog):
    path = quarantine_file(tmp_path, 3)
    entries = [
        {"source": "s", "shard": "0.tar", "key": str(n), "offset": n, "reason": "undecodable"}
        for n in range(10)
    ]
    quarantine = Quarantine(path, most_lines=6)
    for step in range(3):
        quarantine.add(step, entries[: 4 + 3 * step])
    assert len(read_quarantine(tmp_path)) == 6 and "is full with 6 lines" in caplog.text
    path.write_text(path.read_text() + '{"source": "s", "sha')
    assert len(read_quarantine(tmp_path)) == 6 and len(Quarantine(path)._known) == 6
    Quarantine(path, most_lines=8).add(9, entries[8:])  # takes the half line out
    assert len(read_quarantine(tmp_path)) == len(Quarantine(path)._known) == 8
    path.write_text("junk\n" + json.dumps(entries[0]) + "\n")
    with pytest.raises(DataError, match="line 1: 'junk' is malformed"):
        Quarantine(path)


def test_listed_shards_are_not_looked_up_again(tmp_path, monkeypatch):
    """Many ranks start at once, and each would ask the file system for all shards of its list."""
    entries = [
        {"source": "s", "shard": f"{tmp_path}/d/{n}.tar", "key": "", "offset": -1, "reason": "undecodable"}
        for n in range(30)
    ]
    Quarantine(quarantine_file(tmp_path, 0)).add(0, entries)
    looked, plain = [], os.lstat
    monkeypatch.setattr(os, "lstat", lambda *given, **more: (looked.append(given), plain(*given, **more))[1])
    skip_list._without_links.cache_clear()  # as in another process
    again = Quarantine(quarantine_file(tmp_path, 0))
    assert len(read_quarantine(tmp_path)) == 30 and not looked
    again.add(1, [*entries, {**entries[0], "shard": f"{tmp_path}/d/../d/30.tar"}])
    assert len(read_quarantine(tmp_path)) == 31


@pytest.mark.parametrize("part", [5, None, ["0.tar"]])
def test_a_line_whose_shard_is_no_text_is_malformed(tmp_path, part):
    path = quarantine_file(tmp_path, 0)
    path.parent.mkdir()
    path.write_text(json.dumps({"source": "s", "shard": part, "key": "a"}) + "\n")
    with pytest.raises(DataError, match="line 1: .* is malformed; delete the line"):
        Quarantine(path)


def test_a_damaged_shard_of_a_stream_is_no_line_of_a_skip_list(tmp_path, capsys):
    shard = {"source": "s", "shard": "/d/1.tar", "key": "", "offset": -1, "reason": "truncated shard"}
    sample = {**shard, "key": "a", "reason": "undecodable"}
    Quarantine(quarantine_file(tmp_path, 0)).add(0, [shard, sample])
    out = tmp_path / "bad.txt"
    assert cli.main(["prepare", "skiplist", "--from-quarantine", str(tmp_path), "--out", str(out)]) == 0
    assert load_skip_list(out).samples == {("/d/1.tar", "a")}
    printed = capsys.readouterr().out
    assert "1 entries (undecodable 1)" in printed
    assert "not in the list, as it is no sample: truncated shard /d/1.tar" in printed


def test_a_shard_is_the_same_by_every_path(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    entry = {"source": "s", "shard": "link/0.tar", "key": "a", "offset": 0, "reason": "undecodable"}
    remote = {**entry, "shard": "s3://b/0.tar"}
    Quarantine(quarantine_file(tmp_path, 0)).add(0, [entry, remote])
    Quarantine(quarantine_file(tmp_path, 0)).add(1, [{**entry, "shard": f"{tmp_path}/data/0.tar"}])
    listed = read_quarantine(tmp_path)
    assert {found["shard"] for found in listed} == {f"{tmp_path}/data/0.tar", "s3://b/0.tar"}
    (tmp_path / "bad.txt").write_text("\n".join([*skip_list_lines(listed), "sample data/0.tar b"]))
    found = load_skip_list(tmp_path / "bad.txt")
    assert all(found.has_key("a", shard) for shard in ("data/0.tar", "link/0.tar", "s3://b/0.tar"))
    assert found.has_key("b", f"{tmp_path}/data/0.tar") and not found.has_key("a", "data/1.tar")
