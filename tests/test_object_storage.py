"""Shards and checkpoints in a storage that speaks S3's protocol, through s3fs: fsspec's memory, which other
tests use, takes arguments that s3fs does not.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import fsspec
import pytest
from data.conftest import make_config, make_shard, own_cache, vocabulary
from data.shard_files import pair_members, write_tar
from s3_server import buckets, s3_bucket

from flava_ds.checkpoints.place import Place
from flava_ds.data.loader import StepLoader
from flava_ds.errors import CheckpointError, DataError
from flava_ds.storage import retry
from flava_ds.storage.index import load_index, load_indexes
from flava_ds.storage.shards import list_shards

__all__ = ["make_config", "make_shard", "own_cache", "vocabulary"]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def server():
    """The URL of a bucket."""
    with s3_bucket() as url:
        yield url


@pytest.fixture
def bucket(server):
    """The same, and empty."""
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    for path in fs.ls(server):
        fs.rm(path, recursive=True)
    return server


def test_shards_are_listed_indexed_and_read_as_on_disk(bucket, make_config, tmp_path, monkeypatch):
    config = make_config(data={"num_workers": 2})
    local = list_shards(config.data.sources["pairs"].shards)
    for shard in local:
        fsspec.filesystem("s3").put_file(str(shard), f"{bucket}/pairs/{shard.name}")
    remote = list_shards(f"{bucket}/pairs")
    assert [shard.name for shard in remote] == [shard.name for shard in local]
    counts = [len(index) for index in load_indexes(remote)]
    assert counts == [len(index) for index in load_indexes(local)]
    beside = {name.rsplit("/", 1)[-1] for name in fsspec.filesystem("s3").find(f"{bucket}/pairs")}
    assert {f"{shard.name}.index.npz" for shard in local} <= beside

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    source = replace(config.data.sources["pairs"], shards=f"{bucket}/pairs")
    from_bucket = StepLoader(config.with_sources(config.data.sources | {"pairs": source}))
    for ours, theirs in zip(from_bucket, StepLoader(config), strict=True):
        assert ours[0].keys == theirs[0].keys
        assert all(bool((ours[0][name] == theirs[0][name]).all()) for name in theirs[0].tensors)


def test_a_bucket_that_is_not_there_is_refused_at_once_and_not_made(server, monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: pytest.fail("tried again"))
    with pytest.raises(DataError, match="'s3://absent/pairs' does not exist; check the address"):
        list_shards("s3://absent/pairs")
    with pytest.raises(
        CheckpointError, match="cannot be written to 's3://absent/runs' .*bucket does not exist"
    ):
        Place("s3://absent/runs").try_writing()
    assert "absent" not in buckets()


def test_an_object_that_is_not_there_is_named(bucket):
    with pytest.raises(DataError, match="'s3://bucket/pairs/7.tar' does not exist"):
        load_index(list_shards(f"{bucket}/pairs/7.tar")[0])


def test_a_shard_that_was_replaced_is_indexed_again(bucket, tmp_path):
    for count in (4, 3):
        path = write_tar(tmp_path / f"{count}.tar", pair_members(range(count)))
        fsspec.filesystem("s3").put_file(str(path), f"{bucket}/pairs/0.tar")
        assert len(load_index(list_shards(f"{bucket}/pairs/0.tar")[0])) == count


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.usefixtures("demo_data")
def test_a_run_saves_to_a_bucket_and_continues_from_it_on_other_ranks(bucket, tmp_path):
    def losses(name: str, ranks: int, steps: int, *words: str) -> list[float]:
        command = [sys.executable, "-m", "flava_ds.cli", "train", "flava_debug", "--ranks", str(ranks)]
        options = ["--name", name, "--training.total-steps", str(steps), "--logging.no-tensorboard"]
        options += ["--schedule", "constant", "--schedule.warmup-steps", "1"]
        done = subprocess.run(
            [*command, *options, *words],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (tmp_path / "runs" / name / "log.jsonl").read_text().splitlines()
        return [value for line in lines[1:] for key, value in json.loads(line).items() if "loss/" in key]

    kept = ("--checkpoint.directory", f"{bucket}/checkpoints")
    losses("one", 2, 2, *kept)
    place = Place(f"{bucket}/checkpoints/one")
    assert place.names() == ["latest", "step_00000002"]
    continued, whole = losses("one", 1, 4, *kept), losses("whole", 2, 4)
    assert len(continued) == 3 * 4 + 1 and continued == pytest.approx(whole, rel=1e-4)
