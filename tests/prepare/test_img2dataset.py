"""Reports in the exact form that img2dataset leaves beside a shard."""

import json

import pytest
from data.shard_files import pair_members, write_tar

from flava_ds.prepare.img2dataset import REASONS, compare, left_out
from flava_ds.storage.shard_index import scan_shard

STATS = {
    "count": 5,
    "successes": 3,
    "failed_to_download": 1,
    "failed_to_resize": 1,
    "duration": 1.5,
    "start_time": 1.0,
    "end_time": 2.5,
    "status_dict": {"success": 3, "HTTP Error 404: Not Found": 1, "image decoding error": 1},
}


@pytest.fixture
def shard(tmp_path):
    """A shard of three samples, with its index."""
    path = write_tar(tmp_path / "00007.tar", pair_members(range(3)))
    return path, scan_shard(path)


def write_table(folder, keys, statuses):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "url": ["http://x"] * len(keys),
        "key": keys,
        "status": statuses,
        "error_message": [None] * len(keys),
        "width": [16] * len(keys),
    }
    parquet.write_table(pyarrow.table(columns), folder / "00007.parquet")


def test_no_report_is_none_and_an_agreeing_one_is_empty(shard, tmp_path):
    assert compare(*shard) is None
    (tmp_path / "00007_stats.json").write_text(json.dumps(STATS))
    write_table(
        tmp_path,
        [f"{n:09d}" for n in range(5)],
        ["success", "success", "success", "failed_to_download", "failed_to_resize"],
    )
    assert compare(*shard) == []


def test_counts_and_keys_that_differ_are_named(shard, tmp_path):
    (tmp_path / "00007_stats.json").write_text(json.dumps(STATS | {"successes": 4}))
    write_table(tmp_path, [f"{n:09d}" for n in (0, 1, 3, 4)], ["success", "success", "success", "success"])
    count, missing, extra = compare(*shard)
    assert count.endswith("3 samples, but its _stats.json counts 4 successes")
    assert missing.endswith("2 keys are in its .parquet but not in the shard: 000000003, 000000004")
    assert extra.endswith("1 keys are in the shard but not in its .parquet: 000000002")


@pytest.mark.parametrize("content", ["", "[]", "{}", "{broken", "[" * 100_000])
def test_unreadable_reports_are_differences(shard, tmp_path, content):
    (tmp_path / "00007_stats.json").write_text(content)
    (difference,) = compare(*shard)
    assert "its _stats.json cannot be read" in difference


def test_what_was_left_out_is_counted_by_its_commonest_reasons(shard, tmp_path):
    path, other = shard[0], write_tar(tmp_path / "00008.tar", pair_members(range(2)))
    assert left_out([path, other]) == {}
    (tmp_path / "00007_stats.json").write_text(json.dumps(STATS))
    rare = {f"error {number}\x1b[2J": 1 for number in range(20)}
    (tmp_path / "00008_stats.json").write_text(
        json.dumps({"status_dict": rare | {"success": 2, "image decoding error": 4}})
    )
    found = left_out([path, other])
    assert next(iter(found.items())) == ("image decoding error", 5)
    assert len(found) == REASONS + 1 and sum(found.values()) == 20 + 4 + 2
    assert found["other reasons"] == 22 - REASONS
    assert all(reason.isprintable() for reason in found) and "success" not in found
    odd = ('"b"', "Infinity", "1e999", "-3", "0", "true", "null")
    for content in (
        *("", "[]", "{broken", '{"status_dict": 3}', "[" * 100_000),
        *(f'{{"status_dict": {{"a": {value}}}}}' for value in odd),
    ):
        (tmp_path / "00008_stats.json").write_text(content)
        assert left_out([other]) == {}


def test_a_table_that_is_none_is_a_difference(shard, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "00007.parquet").write_bytes(b"PAR1 not really")
    (difference,) = compare(*shard)
    assert "its .parquet cannot be read" in difference


def test_what_a_report_says_cannot_write_to_the_terminal(shard, tmp_path):
    (tmp_path / "00007_stats.json").write_text(json.dumps(STATS | {"successes": "\x1b[2J"}))
    write_table(tmp_path, ["\x1b]0;title\x07"], ["success"])
    assert [line.isprintable() for line in compare(*shard)] == [True] * 3
