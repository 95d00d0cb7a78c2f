"""A resumed stream does not read an epoch to learn how long it is; what changed meanwhile is told."""

import json

import numpy as np
import pytest
from data.shard_files import pair_members
from data.test_sources import reading

from flava_ds.config import LoggingConfig
from flava_ds.data import stream_pipeline
from flava_ds.data.skip_log import SkipLog
from flava_ds.data.sources import Lane, open_source

ALONE = Lane()


@pytest.fixture
def source(make_config, make_shard, tmp_path):
    """Six shards of 2 to 7 samples, 27 in all, as a stream of a run whose folder is there."""
    for number in range(6):
        make_shard(f"pairs/{number}.tar", pair_members(range(10 * number, 10 * number + 2 + number)))
    config = make_config(logging=LoggingConfig(run_directory=str(tmp_path / "runs")))
    config = reading(config, "stream", shuffle_buffer=4)
    config.run_path.mkdir(parents=True)
    return open_source(config, "pairs")


@pytest.fixture
def opened(monkeypatch):
    """The shards that are opened."""
    found, open_shard = [], stream_pipeline.open_shard
    monkeypatch.setattr(stream_pipeline, "open_shard", lambda shard: found.append(shard) or open_shard(shard))
    return found


def keys(source, first, count, lane=ALONE):
    """The keys at some positions of a lane that begins there."""
    draws = source.open(lane).samples(np.arange(first, first + count), SkipLog("pairs", 0.0))
    return [sample.key for sample in draws]


def test_a_resume_reads_its_own_epoch_only(source, opened):
    whole = keys(source, 0, 3 * 27 + 5)
    file = source.config.run_path / "streams" / "pairs.0_of_1.json"
    assert json.loads(file.read_text())["samples"] == 27
    for first in (2 * 27, 2 * 27 + 1, 3 * 27 - 1, 3 * 27 + 2):
        opened.clear()
        assert keys(source, first, 3) == whole[first : first + 3]
        last = (first + 2) // 27 - first // 27
        assert len(opened) <= 6 * (1 + last)
    file.unlink()
    opened.clear()
    assert keys(source, 60, 3) == whole[60:63] and len(opened) > 6


def test_each_lane_has_its_own_length(source):
    for lane in (Lane(number=number, each=2) for number in range(2)):
        whole = keys(source, 0, 50, lane)
        assert keys(source, 40, 10, lane) == whole[40:]
    found = sorted((source.config.run_path / "streams").iterdir())
    assert [path.name for path in found] == ["pairs.0_of_2.json", "pairs.1_of_2.json"]
    assert sum(json.loads(path.read_text())["samples"] for path in found) == 27


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"shards": "others", "samples": 3}', '{"samples": 3}', "[" * 100_000]
)
def test_what_is_damaged_or_of_other_shards_does_not_count(source, content):
    whole = keys(source, 0, 70)
    file = source.config.run_path / "streams" / "pairs.0_of_1.json"
    file.write_text(content)
    assert keys(source, 60, 10) == whole[60:]
    assert json.loads(file.read_text())["samples"] == 27


@pytest.mark.parametrize("samples", ["-1", "0", "27.0", "true", '"27"', "null"])
def test_only_a_number_of_samples_counts(source, samples):
    whole = keys(source, 0, 70)
    file = source.config.run_path / "streams" / "pairs.0_of_1.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"samples": json.loads(samples)}))
    assert keys(source, 60, 10) == whole[60:]


def test_shards_that_have_changed_are_told(source, make_shard, caplog):
    keys(source, 0, 30)
    make_shard("pairs/5.tar", pair_members(range(50, 55)))
    keys(source, 2 * 27, 30)
    [said] = [record.getMessage() for record in caplog.records if "have changed" in record.getMessage()]
    assert "source 'pairs': stream 0 of 1 has 25 samples in this epoch, and had 27 in an earlier one" in said


def test_without_a_run_nothing_is_written(source):
    source.config.run_path.rmdir()
    keys(source, 0, 70)
    assert not source.config.run_path.exists()
