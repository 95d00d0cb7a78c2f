"""A table that is stored is the one that a process would hold, and is never an older or a broken one."""

import logging
import mmap
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from data.shard_files import pair_members

from flava_ds.build import prepare_shards
from flava_ds.data.indexed import IndexedShards
from flava_ds.errors import DataError
from flava_ds.storage import index as index_module
from flava_ds.storage import sample_table, table_files
from flava_ds.storage.index import load_indexes
from flava_ds.storage.index_files import index_files
from flava_ds.storage.sample_table import SampleTable, prepare_table

FIELDS = {"image": ("webp", "png"), "caption": ("txt",), "metadata": ("json",)}
REQUIRED = {"image": "no image", "caption": "missing caption"}

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def shards(make_shard):
    """Four shards: one of them without a usable sample, one with two samples that lack a member."""
    return [
        make_shard("0.tar", pair_members(range(3))),
        make_shard("1.tar", [("alone.txt", b"no picture"), ("bare.webp", b"no text")]),
        make_shard("2.tar", [*pair_members([20]), ("x.webp", b"no text"), *pair_members([21])]),
        make_shard("3.tar", pair_members(range(30, 35))),
    ]


@pytest.fixture
def few(monkeypatch):
    """Stores the tables of few shards, too."""
    monkeypatch.setattr(sample_table, "STORED_FROM", 2)


def tables(tmp_path):
    return sorted((tmp_path / "cache/flava_ds/tables").glob("*"))


def told(table):
    """Everything that a table says."""
    columns = {field: [part.tolist() for part in column] for field, column in table.columns.items()}
    keys = [table.key(sample) for sample in range(len(table))]
    places = [table.shard_of(sample) for sample in range(len(table))]
    return (
        (len(table), table.first.tolist(), keys, places, columns, table.faults, table.stamps),
        (table.fingerprint, table.layout, table.contents),
    )


def is_mapped(array):
    """Returns whether an array's bytes are those of a file."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array.obj if isinstance(array, memoryview) else array, mmap.mmap)


def make_older(folder, seconds):
    for file in (*folder.iterdir(), folder):
        os.utime(file, (time.time() - seconds,) * 2)


def test_a_stored_table_equals_one_that_is_held(shards, tmp_path, monkeypatch):
    held = SampleTable(shards, FIELDS, REQUIRED)
    assert len(held) == 10 and held.faults == {"no image": 1, "missing caption": 2}
    prepare_table(shards, FIELDS, REQUIRED)
    assert not tables(tmp_path), "a table of few shards was stored"
    monkeypatch.setattr(sample_table, "STORED_FROM", 4)
    prepare_table(shards, FIELDS, REQUIRED)
    stored = SampleTable(shards, FIELDS, REQUIRED)
    assert told(stored) == told(held)
    arrays = (stored.keys, stored.key_ends, *(part for column in stored.columns.values() for part in column))
    assert all(map(is_mapped, arrays)) and not is_mapped(held.keys)
    assert [array.dtype for array in stored.columns["image"]] == [np.int64, np.uint32]
    with pytest.raises(ValueError, match="read-only"):
        stored.keys[0] = 0


@pytest.mark.usefixtures("few")
def test_it_is_read_instead_of_the_indexes(shards, monkeypatch):
    prepare_table(shards, FIELDS, REQUIRED)
    monkeypatch.setattr(sample_table, "load_indexes", lambda *_: pytest.fail("an index was read"))
    prepare_table(shards, FIELDS, REQUIRED)
    assert len(SampleTable(shards, FIELDS, REQUIRED)) == 10


@pytest.mark.usefixtures("few")
def test_a_run_stores_the_tables_of_its_large_sources(make_config):
    config = make_config()
    assert list(prepare_shards(config)) == ["pairs"]
    mapped = {name: is_mapped(IndexedShards(config, name).table.keys) for name in config.data.sources}
    assert mapped == {"pairs": True, "images": False, "text": False}


@pytest.mark.usefixtures("few")
def test_other_shards_fields_and_requirements_have_tables_of_their_own(shards, tmp_path):
    for chosen, fields, required in (
        (shards, FIELDS, REQUIRED),
        (shards[:3], FIELDS, REQUIRED),
        (shards, {"image": ("webp",)}, {}),
        (shards, FIELDS, {}),
    ):
        prepare_table(chosen, fields, required)
        held = sample_table._Builder(chosen, SampleTable(chosen, fields, required).stamps, fields, required)
        expected = sum(len(part["key_ends"]) for part in held.parts())
        assert len(SampleTable(chosen, fields, required)) == expected
    assert len(tables(tmp_path)) == 4


@pytest.mark.usefixtures("few")
def test_a_changed_shard_has_another_table_and_the_old_one_goes_when_nobody_needs_it(
    shards, make_shard, tmp_path
):
    prepare_table(shards, FIELDS, REQUIRED)
    (old,) = tables(tmp_path)
    mapped = SampleTable(shards, FIELDS, REQUIRED)
    make_shard("0.tar", pair_members(range(7)))
    assert len(SampleTable(shards, FIELDS, REQUIRED)) == 14, "the table of the old shard was read"
    prepare_table(shards, FIELDS, REQUIRED)
    assert len(SampleTable(shards, FIELDS, REQUIRED)) == 14 and old in tables(tmp_path)
    make_older(old, 2 * table_files._SUPERSEDED_S)
    make_shard("0.tar", pair_members(range(8)))
    prepare_table(shards, FIELDS, REQUIRED)
    assert old in tables(tmp_path), "a table that a process maps has gone"
    assert mapped.key(9) == "000000034"
    del mapped
    make_shard("0.tar", pair_members(range(9)))
    prepare_table(shards, FIELDS, REQUIRED)
    assert old not in tables(tmp_path) and len(tables(tmp_path)) == 3


@pytest.mark.usefixtures("few")
def test_machines_with_other_versions_of_the_shards_leave_each_other_their_tables(shards, tmp_path):
    for nanoseconds in (10**18, 2 * 10**18, 10**18, 2 * 10**18):
        for shard in shards:
            os.utime(shard, ns=(nanoseconds, nanoseconds))
        prepare_table(shards, FIELDS, REQUIRED)
        assert is_mapped(SampleTable(shards, FIELDS, REQUIRED).keys)


@pytest.mark.usefixtures("few")
def test_indexes_that_are_made_again_renew_it(shards, make_shard):
    """As `prepare index --verify` tells a user to do whose shard has other bytes, but its size and time."""
    prepare_table(shards, FIELDS, REQUIRED)
    expected, stat = SampleTable(shards, FIELDS, REQUIRED), shards[3].stat()
    make_shard("3.tar", pair_members(reversed(range(30, 35))))
    os.truncate(shards[3], stat.st_size)
    os.utime(shards[3], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    index_files(shards[3])[0].unlink()
    prepare_table(shards, FIELDS, REQUIRED)
    table = SampleTable(shards, FIELDS, REQUIRED)
    assert [table.key(5), expected.key(5)] == ["000000034", "000000030"] and is_mapped(table.keys)


@pytest.mark.usefixtures("few")
def test_checksums_that_come_later_renew_it_once(shards, monkeypatch):
    prepare_table(shards, FIELDS, REQUIRED)
    assert SampleTable(shards, FIELDS, REQUIRED).contents is None
    list(load_indexes(shards[:2], checksum=True))
    prepare_table(shards, FIELDS, REQUIRED)
    with monkeypatch.context() as patch:
        patch.setattr(sample_table, "load_indexes", lambda *_: pytest.fail("it was made again"))
        prepare_table(shards, FIELDS, REQUIRED)
    assert SampleTable(shards, FIELDS, REQUIRED).contents is None
    list(load_indexes(shards, checksum=True))
    prepare_table(shards, FIELDS, REQUIRED)
    assert SampleTable(shards, FIELDS, REQUIRED).contents is not None


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", ["keys", "image.offset", "shard_ends", table_files.HEADER])
@pytest.mark.parametrize("damage", ["absent", "cut short", "longer"])
def test_a_broken_table_is_never_read_and_is_written_again(shards, tmp_path, name, damage):
    prepare_table(shards, FIELDS, REQUIRED)
    expected = told(SampleTable(shards, FIELDS, REQUIRED))
    (folder,) = tables(tmp_path)
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage != "absent":
        (folder / name).write_bytes(data[:-1] if damage == "cut short" else data + b"1")
    table = SampleTable(shards, FIELDS, REQUIRED)
    assert told(table) == expected and not is_mapped(table.keys)
    prepare_table(shards, FIELDS, REQUIRED)
    assert is_mapped(SampleTable(shards, FIELDS, REQUIRED).keys) and (folder / name).read_bytes() == data


@pytest.mark.usefixtures("few")
def test_what_nobody_uses_goes(shards, tmp_path):
    prepare_table(shards, FIELDS, REQUIRED)
    (used,) = tables(tmp_path)
    idle, busy, old = ("0" * 16 + "-" + digit * 16 for digit in "123")
    names = (f".{idle}.1-0123abcd.partial", idle, f".{busy}.2-0123abcd.partial", busy)
    others = [used.with_name(name) for name in (*names, "of somebody else", f"{old}.mine")]
    for other in others:
        other.mkdir()
        (other / "keys").write_bytes(b"1")
    for folder in (used, *others[:2], *others[4:]):
        make_older(folder, 2 * table_files._UNUSED_S)
    prepare_table(shards, FIELDS, REQUIRED)
    left = set((tmp_path / "cache/flava_ds/tables").iterdir())
    assert left == {used, *others[2:]}, "a start with a stored table removes what nobody uses, and no more"


@pytest.mark.usefixtures("few")
def test_the_first_of_two_writers_wins(shards, tmp_path):
    prepare_table(shards, FIELDS, REQUIRED)
    (folder,) = tables(tmp_path)
    inode = (folder / "keys").stat().st_ino
    table_files.store(folder, [{"keys": np.zeros(3, np.uint8)}], lambda _: {}, lambda: folder)
    assert (folder / "keys").stat().st_ino == inode and tables(tmp_path) == [folder]


@pytest.mark.usefixtures("few")
def test_one_process_at_a_time_makes_a_table(shards, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(table_files, "_POLL_S", 0.01)
    list(load_indexes(shards))
    folder = sample_table._folder(shards, sample_table.stamps_of(shards), FIELDS, REQUIRED)
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(1) as pool:
        with table_files.alone(folder):
            waiting = pool.submit(prepare_table, shards, FIELDS, REQUIRED)
            begun = time.monotonic()
            while "another process makes the table of samples" not in caplog.text:
                assert time.monotonic() < begun + 60 and not waiting.done()
                time.sleep(0.01)
            builder = sample_table._Builder(shards, sample_table.stamps_of(shards), FIELDS, REQUIRED)
            table_files.store(folder, builder.parts(), builder.said, lambda: folder)
            made = (folder / "keys").stat().st_ino
        waiting.result()
    assert (folder / "keys").stat().st_ino == made and sorted(folder.parent.iterdir()) == [folder]


@pytest.mark.usefixtures("few")
def test_without_room_every_process_holds_its_own(shards, tmp_path, caplog):
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    cache = tmp_path / "cache/flava_ds"
    cache.mkdir(parents=True)
    (cache / "tables").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        prepare_table(shards, FIELDS, REQUIRED)
    assert f"the table of 4 shards cannot be kept in '{cache / 'tables'}' (" in caplog.text
    assert all(index_files(shard)[0].is_file() for shard in shards), "every rank would index all shards"
    assert len(SampleTable(shards, FIELDS, REQUIRED)) == 10


@pytest.mark.usefixtures("few")
def test_who_waits_for_too_long_holds_its_own(shards, monkeypatch, caplog):
    monkeypatch.setattr(table_files, "_POLL_S", 0.01)
    monkeypatch.setattr(table_files, "_PATIENCE_S", 0.05)
    list(load_indexes(shards))
    folder = sample_table._folder(shards, sample_table.stamps_of(shards), FIELDS, REQUIRED)
    with table_files.alone(folder), caplog.at_level(logging.WARNING):
        prepare_table(shards, FIELDS, REQUIRED)
    assert "cannot be kept" in caplog.text and ".lock' and has written nothing for 0 s" in caplog.text
    assert not folder.exists() and len(SampleTable(shards, FIELDS, REQUIRED)) == 10


@pytest.mark.usefixtures("few")
def test_a_source_without_a_usable_sample_is_stored_as_such(make_shard):
    shards = [make_shard(f"{n}.tar", [(f"{n}.txt", b"no picture")]) for n in range(2)]
    prepare_table(shards, FIELDS, REQUIRED)
    table = SampleTable(shards, FIELDS, REQUIRED)
    assert len(table) == 0 and table.faults == {"no image": 2} and table.first.tolist() == [0, 0, 0]


@pytest.mark.usefixtures("few")
def test_a_shard_that_cannot_be_read_is_named(shards):
    shards[2].unlink()
    with pytest.raises(DataError, match="2.tar' cannot be read"):
        prepare_table(shards, FIELDS, REQUIRED)


def starts(shards, cache, pipe):
    """A machine's start: what its rank 0 prepares, and whether its ranks map it."""
    os.environ["FLAVA_DS_CACHE"] = cache
    sample_table.STORED_FROM = 2
    pipe.send("ready")
    pipe.recv()
    prepare_table(shards, FIELDS, REQUIRED)
    pipe.send(is_mapped(SampleTable(shards, FIELDS, REQUIRED).keys))


def test_machines_that_start_together_on_shards_without_indexes_map_one_table(make_shard, tmp_path):
    shards = [make_shard(f"{n:02d}.tar", pair_members(range(9 * n, 9 * n + 9))) for n in range(40)]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(3)]
    cache = str(tmp_path / "cache/flava_ds")
    machines = [context.Process(target=starts, args=(shards, cache, theirs)) for _, theirs in pipes]
    for machine in machines:
        machine.start()
    assert [ours.recv() for ours, _ in pipes] == ["ready"] * 3
    for ours, _ in pipes:
        ours.send("go")
    assert [ours.recv() for ours, _ in pipes] == [True] * 3 and len(tables(tmp_path)) == 1
    for machine in machines:
        machine.join()


@pytest.mark.usefixtures("few")
def test_an_index_that_was_damaged_behind_its_header_does_not_hide_the_table(shards, tmp_path):
    list(load_indexes(shards))
    (file, _) = index_files(shards[2])
    data = file.read_bytes()
    file.write_bytes(data[:-200] + bytes(200))
    prepare_table(shards, FIELDS, REQUIRED)
    assert is_mapped(SampleTable(shards, FIELDS, REQUIRED).keys) and len(tables(tmp_path)) == 1
    assert file.read_bytes() == data


@pytest.mark.usefixtures("few")
def test_an_index_in_the_cache_counts_beside_an_outdated_one(shards, make_shard, monkeypatch):
    """As in a folder that may only be read, whose shards were renewed without their indexes."""
    list(load_indexes(shards))
    beside, cached = index_files(shards[3])
    old, stat = beside.read_bytes(), shards[3].stat()
    make_shard("3.tar", pair_members(range(40, 45)))
    os.utime(shards[3], ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))

    def renew():
        list(load_indexes(shards))
        if cached.is_file():
            cached.unlink()
        cached.parent.mkdir(parents=True, exist_ok=True)
        beside.rename(cached)
        beside.write_bytes(old)
        prepare_table(shards, FIELDS, REQUIRED)
        return SampleTable(shards, FIELDS, REQUIRED)

    first = renew()
    size, time_ns = shards[3].stat().st_size, shards[3].stat().st_mtime_ns
    make_shard("3.tar", pair_members(reversed(range(40, 45))))
    os.truncate(shards[3], size)
    os.utime(shards[3], ns=(time_ns, time_ns))
    cached.unlink()
    second = renew()
    assert [first.key(5), second.key(5)] == ["000000040", "000000044"]
    assert is_mapped(first.keys) and is_mapped(second.keys)


@pytest.mark.usefixtures("few")
def test_indexes_that_cannot_be_written_are_made_once_for_the_table(shards, monkeypatch, caplog):
    scanned = []
    scan = index_module.scan_shard
    monkeypatch.setattr(index_module, "keep_index", lambda *_: False)
    monkeypatch.setattr(index_module, "scan_shard", lambda *a, **k: scanned.append(a[0]) or scan(*a, **k))
    prepare_table(shards, FIELDS, REQUIRED)
    assert sorted(scanned) == shards
    assert is_mapped(SampleTable(shards, FIELDS, REQUIRED).keys) and sorted(scanned) == shards


@pytest.mark.usefixtures("few")
def test_a_writer_is_waited_for_as_long_as_its_table_grows(shards, monkeypatch, caplog):
    list(load_indexes(shards))
    folder = sample_table._folder(shards, sample_table.stamps_of(shards), FIELDS, REQUIRED)
    growing = table_files._beside(folder)
    clock = SimpleNamespace(now=0.0, time=time.time, monotonic=lambda: clock.now)

    def sleep(_):
        """Lets some time pass, in which the other process writes a byte, 20 times."""
        clock.now += table_files._PATIENCE_S / 2
        with (growing / "keys").open("ab") as file:
            file.write(b"1" * (file.tell() < 20))

    clock.sleep = sleep
    monkeypatch.setattr(table_files, "time", clock)
    with table_files.alone(folder):
        growing.mkdir()
        prepare_table(shards, FIELDS, REQUIRED)
    assert (growing / "keys").stat().st_size == 20 and "has written nothing for 300 s" in caplog.text


def test_samples_with_one_of_many_keys_are_found(make_shard, monkeypatch):
    """Against a loop, over keys of several lengths, some of them no UTF-8, and blocks that end anywhere."""
    monkeypatch.setattr(sample_table, "_AT_A_TIME", 4)
    names = [f"{number:0{3 + number % 3}d}é"[: 3 + number % 4] for number in range(21)]
    names += ["caf\udce9", "caf\udce8\udce9"]
    shards = [
        make_shard(f"{n}.tar", [(f"{name}.txt", b"a") for name in names[start : start + 9]])
        for n, start in enumerate((0, 9, 18))
    ]
    table = SampleTable(shards, {"caption": ("txt",)}, {"caption": "missing caption"})
    keys = [table.key(number) for number in range(len(table))]
    wanted = {*keys[::3], "caf\ufffd", "x", "0", "nowhere at all"}
    for most in (0, 1, 7, len(table), 10**9):
        expected = [number for number, key in enumerate(keys[:most]) if key in wanted]
        assert list(table.having(wanted, most)) == expected
    assert not list(table.having([], 9))
