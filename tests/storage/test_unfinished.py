"""Folders that an interrupted `flava-ds prepare` has left are named once, wherever shards are listed."""

import logging

import fsspec
import pytest
from data.shard_files import caption, picture

from flava_ds.build import prepare_shards
from flava_ds.config import Config, SourceConfig
from flava_ds.config.plain_files import MOST_BYTES
from flava_ds.prepare.index import build_indexes
from flava_ds.prepare.shard_writer import ShardWriter
from flava_ds.storage.files import RemoteShard
from flava_ds.storage.shards import expand_shards
from flava_ds.storage.small_objects import read_beside
from flava_ds.storage.unfinished import SUMMARY, warn_of_unfinished


def write(folder, samples: int, finish: bool) -> None:
    """Writes pairs as a conversion does that ends, or is stopped."""
    with ShardWriter(folder, "f", samples_per_shard=2) as writer:
        for number in range(samples):
            members = {"webp": picture(number), "txt": caption(number).encode()}
            writer.write(f"{number:04d}", members, (caption(number),))
        if finish:
            writer.close()


@pytest.fixture
def folder(tmp_path):
    """Two shards, after which a third was to come."""
    write(tmp_path / "out", 5, finish=False)
    return tmp_path / "out"


def said(caplog, folder) -> int:
    """Returns how many warnings since the last call name the folder."""
    start = f"'{folder}': its preparation was interrupted"
    found = [record for record in caplog.records if record.getMessage().startswith(start)]
    assert all(record.levelno == logging.WARNING for record in found)
    caplog.clear()
    return len(found)


def a_run(shards, **fields) -> Config:
    """A configuration of one source."""
    source = SourceConfig(kind="pair", shards=str(shards), **fields)
    return Config(name="test").with_sources({"pairs": source})


@pytest.mark.parametrize(
    "look",
    [
        lambda folder: build_indexes([str(folder), f"{folder}/00001.tar"]),
        lambda folder: expand_shards(f"{folder}/{{00000..00001}}.tar"),
        lambda folder: prepare_shards(a_run(folder)),
        lambda folder: prepare_shards(a_run(folder, reading="stream")),
    ],
    ids=["prepare index", "check and evaluate", "train", "a stream"],
)
def test_it_is_named_once_and_not_refused(folder, caplog, look):
    look(folder)
    assert said(caplog, folder) == 1
    look(folder)
    assert said(caplog, folder) == 0


def test_finished_folders_and_those_of_others_are_not(tmp_path, caplog):
    write(tmp_path / "whole", 5, finish=True)
    expand_shards(str(tmp_path / "whole"))
    for name, record in (("img2dataset", '{"count": 9, "successes": 2}'), ("other", "[[["), ("none", None)):
        write(tmp_path / name, 3, finish=False)
        beside = tmp_path / name / "00000_stats.json"
        beside.write_text(record) if record else beside.unlink()
        expand_shards(str(tmp_path / name))
    assert "interrupted" not in caplog.text


def test_a_summary_that_cannot_be_read_ends_nothing(folder, caplog):
    with (folder / SUMMARY).open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    expand_shards(str(folder))
    assert said(caplog, folder) == 0


def test_only_the_first_rank_of_a_machine_looks(folder, caplog, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    expand_shards(str(folder))
    assert said(caplog, folder) == 0


def test_objects_too(folder, caplog):
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe_file(f"/unfinished/{file.name}", file.read_bytes())
    shards = [RemoteShard(f"memory://unfinished/{number:05d}.tar") for number in range(2)]
    warn_of_unfinished(shards)
    assert said(caplog, "memory://unfinished") == 1
    assert read_beside(shards[0], SUMMARY) is None
