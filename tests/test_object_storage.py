"""Shards and checkpoints in a storage that speaks S3's protocol, through s3fs: fsspec's memory, which other
tests use, takes arguments that s3fs does not.
"""

import os
from dataclasses import replace
from functools import partial

import fsspec
import pytest
from data.conftest import make_config, make_shard, own_cache, vocabulary
from data.shard_files import pair_members, write_tar
from real_runs import Job, curve, real_config
from s3_server import s3_bucket

import flava_ds
from flava_ds.checkpoints.initial_weights import initial_weights
from flava_ds.checkpoints.place import Place
from flava_ds.config import CheckpointConfig, Config, TrainingConfig
from flava_ds.config.schedules import ConstantScheduleConfig
from flava_ds.data.loader import StepLoader
from flava_ds.errors import CheckpointError, DataError
from flava_ds.hf.export_weights import read_run
from flava_ds.ranks.launch import check_inputs
from flava_ds.storage import retry
from flava_ds.storage.index import load_index, load_indexes
from flava_ds.storage.shards import list_shards

__all__ = ["make_config", "make_shard", "own_cache", "vocabulary"]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def storage():
    """The URL of an empty bucket, and what all buckets hold."""
    with s3_bucket() as found:
        yield found


@pytest.fixture
def bucket(storage):
    """The URL alone."""
    return storage[0]


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


def test_a_bucket_that_is_not_there_is_refused_at_once_and_not_made(storage, monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: pytest.fail("tried again"))
    with pytest.raises(DataError, match="'s3://absent/pairs' does not exist; check the address"):
        list_shards("s3://absent/pairs")
    with pytest.raises(
        CheckpointError, match="cannot be written to 's3://absent/runs' .*bucket does not exist"
    ):
        Place("s3://absent/runs").try_writing()
    assert set(storage[1]) == {"bucket"}


def test_an_object_that_is_not_there_is_named(bucket):
    with pytest.raises(DataError, match="'s3://bucket/pairs/7.tar' does not exist"):
        load_index(list_shards(f"{bucket}/pairs/7.tar")[0])


def test_a_shard_that_was_replaced_is_indexed_again(bucket, tmp_path):
    for count in (4, 3):
        path = write_tar(tmp_path / f"{count}.tar", pair_members(range(count)))
        fsspec.filesystem("s3").put_file(str(path), f"{bucket}/pairs/0.tar")
        assert len(load_index(list_shards(f"{bucket}/pairs/0.tar")[0])) == count


def find_storage(environment: dict[str, str], rank: int) -> None:
    """Lets a rank, which was forked from a server, find the storage."""
    os.environ.update(environment)


def check_that_it_opens(url: str, config: Config) -> None:
    """Opens the latest checkpoint below a URL in every way that takes one, without the run's own folder."""
    assert "step 8" in repr(flava_ds.load(url, device="cpu"))
    saved, weights = read_run(url)
    known, unused = initial_weights(config.model.build(config), f"{url}/step_00000008", "flava")
    assert saved.model == config.model and not unused and known.keys() == weights.keys()
    check_inputs(replace(config, initial_weights=url))
    with pytest.raises(CheckpointError, match="absent holds neither a checkpoint"):
        flava_ds.load(f"{url}/absent")


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_saves_to_a_bucket_and_continues_from_it_on_other_ranks(bucket, tmp_path):
    found = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def train(name: str, ranks: int, steps: int, directory: str | None) -> list[dict]:
        job = Job(
            real_config(
                tmp_path,
                name=name,
                training=TrainingConfig(total_steps=steps, global_batch_size=8, precision="fp32"),
                schedule=ConstantScheduleConfig(warmup_steps=1),
                checkpoint=CheckpointConfig(every_steps=3, directory=directory),
            ),
            ranks,
            partial(find_storage, found),
        )
        assert job.wait() == [0] * ranks, job.said()[-3000:]
        return curve(tmp_path / "runs" / name)

    kept = f"{bucket}/checkpoints"
    train("kept", 2, 4, kept)
    assert Place(f"{kept}/kept").names() == ["latest", "step_00000003", "step_00000004"]
    continued, whole = train("kept", 1, 8, kept), train("whole", 2, 8, None)
    assert [record["step"] for record in continued] == [*range(8)]
    assert continued[:4] == whole[:4]
    check_that_it_opens(f"{kept}/kept", real_config(tmp_path))
    for record, expected in zip(continued[4:], whole[4:], strict=True):
        assert record.pop("source") == expected.pop("source") and record.pop("kind") == expected.pop("kind")
        assert record == pytest.approx(expected, rel=1e-4, abs=1e-6)
