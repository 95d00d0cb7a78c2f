"""The layout that is written, its limits, and a conversion that is stopped anywhere and goes on."""

import json
import tarfile

import pytest

from flava_ds.errors import DataError
from flava_ds.prepare.shard_writer import DUPLICATE_KEY, SUMMARY, Counts, ShardWriter
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.shard_index import scan_shard


def fill(writer: ShardWriter, entries: int, stop: int | None = None) -> ShardWriter:
    """Writes entries that the writer has not seen; every fifth gives no sample. Stops as a killed process
    would, before entry `stop`.
    """
    for number in range(writer.counts.entries, entries if stop is None else stop):
        if number % 5 == 4:
            writer.leave_out("no image file")
        else:
            writer.write(f"{number:04d}", {"jpg": bytes([number]) * 100, "txt": b"two words"}, ("two words",))
    return writer


def contents(folder) -> dict[str, bytes]:
    """Reads all that a conversion has written."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def whole(tmp_path) -> dict[str, bytes]:
    """What an uninterrupted conversion of 23 entries writes."""
    counts = fill(ShardWriter(tmp_path / "whole", "f", samples_per_shard=4), 23).close()
    assert counts == Counts(23, 19, 19, 38, {"no image file": 4})
    return contents(tmp_path / "whole")


def test_layout_and_records(whole, tmp_path):
    assert list(whole) == sorted(
        [*(f"{n:05d}.tar" for n in range(5)), *(f"{n:05d}_stats.json" for n in range(5)), SUMMARY]
    )
    index = scan_shard(tmp_path / "whole" / "00001.tar")
    assert len(index) == 4 and set(index.suffixes) == {"jpg", "txt"} and not index.faults
    stats = json.loads(whole["00001_stats.json"])
    assert (
        stats["successes"] == stats["status_dict"]["success"] == 4
        and stats["count"] == 4 + stats["status_dict"]["no image file"]
    )
    with tarfile.open(tmp_path / "whole" / "00000.tar") as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


@pytest.mark.parametrize("stop", range(0, 24))
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(whole, tmp_path, stop):
    # never closed: an open .partial stays behind
    fill(ShardWriter(tmp_path / "out", "f", samples_per_shard=4), 23, stop)
    assert fill(ShardWriter(tmp_path / "out", "f", samples_per_shard=4), 23).close().entries == 23
    assert contents(tmp_path / "out") == whole


def test_shard_whose_record_is_missing_is_written_again(whole, tmp_path):
    folder = tmp_path / "whole"
    for name in ("00004_stats.json", "00003_stats.json", "00004.tar", SUMMARY):
        (folder / name).unlink()
    fill(ShardWriter(folder, "f", samples_per_shard=4), 23).close()
    assert contents(folder) == whole


def test_finished_conversion_is_known(whole, tmp_path):
    writer = ShardWriter(tmp_path / "whole", "f", samples_per_shard=4)
    assert writer.complete and writer.counts == Counts(23, 19, 19, 38, {"no image file": 4})


def test_bytes_limit_a_shard_but_a_large_sample_has_its_own(tmp_path):
    writer = ShardWriter(tmp_path, "f", bytes_per_shard=10_000)
    for number, size in enumerate((3000, 3000, 3000, 50_000, 100)):
        writer.write(str(number), {"jpg": bytes(size)}, ())
    writer.close()
    assert [len(scan_shard(tmp_path / f"{shard:05d}.tar")) for shard in range(4)] == [2, 1, 1, 1]


def test_second_sample_of_a_key_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, "f")
    writer.write("same", {"txt": b"first"}, ("first",))
    with pytest.raises(SampleFault, match=DUPLICATE_KEY):
        writer.write("same", {"txt": b"second"}, ("second",))
    assert writer.close().samples == 1
    assert scan_shard(tmp_path / "00000.tar").member_size.tolist() == [5]


def test_abandoned_shard_leaves_nothing(tmp_path):
    writer = ShardWriter(tmp_path / "out", "f", samples_per_shard=1)
    writer.write("a", {"txt": b"a"}, ())
    writer.abandon()
    assert not (tmp_path / "out").exists()
    kept = ShardWriter(tmp_path / "kept", "f", samples_per_shard=1)
    for key in "ab":
        kept.write(key, {"txt": b"a"}, ())
    kept.abandon()
    assert sorted(contents(tmp_path / "kept")) == ["00000.tar", "00000_stats.json"]


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path):
    first = fill(ShardWriter(tmp_path / "out", "f", samples_per_shard=4), 23, 10)
    with pytest.raises(DataError, match=r"folder '.*out': another process is writing there"):
        ShardWriter(tmp_path / "out", "f", samples_per_shard=4)
    first.abandon()
    second = ShardWriter(tmp_path / "out", "f", samples_per_shard=4)
    assert second.shards == 1 and fill(second, 23).close().entries == 23
    assert ShardWriter(tmp_path / "out", "f", samples_per_shard=4).complete  # reading needs no lock
    assert ShardWriter(tmp_path / "out", "f", samples_per_shard=4).complete


def test_a_full_disk_is_one_line_and_leaves_no_half_shard(tmp_path):
    writer = ShardWriter(tmp_path / "out", "f")
    (tmp_path / "out" / "00000.tar.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"folder '.*out': No space left on device"):
        writer.write("a", {"jpg": bytes(10**6)}, ())
    writer.abandon()
    assert not (tmp_path / "out").exists()


def test_folder_of_something_else_is_refused(whole, tmp_path):
    with pytest.raises(
        DataError, match="was prepared from other annotations or with other options; choose an empty folder"
    ):
        ShardWriter(tmp_path / "whole", "another", samples_per_shard=4)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "00007.tar").write_bytes(b"")
    with pytest.raises(DataError, match="contains 00007.tar, which this conversion did not write"):
        ShardWriter(tmp_path / "foreign", "f")
    (tmp_path / "stats").mkdir()
    for name, data in (
        ("00000.tar", b""),
        ("00000_stats.json", b'{"count": 3, "successes": 3, "failed_to_download": 0}'),
    ):
        (tmp_path / "stats" / name).write_bytes(data)
    with pytest.raises(DataError, match="00000_stats.json' is not a record of a conversion"):
        ShardWriter(tmp_path / "stats", "f")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (3, "interrupted before the first shard was finished; the same command begins anew"),
        (12, "interrupted with 8 samples in the finished shards of '.*/out', which is incomplete; the same"),
    ],
)
def test_an_interrupt_says_what_is_left_and_how_to_go_on(tmp_path, entries, words):
    with (
        pytest.raises(KeyboardInterrupt, match=words),
        ShardWriter(tmp_path / "out", "f", samples_per_shard=4) as writer,
    ):
        fill(writer, entries)
        raise KeyboardInterrupt
    assert (tmp_path / "out").exists() == (entries == 12)
