"""Tables as folders: a process maps a whole one that stays, or none, whatever others do to it meanwhile."""

import fcntl
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flava_ds.storage import table_files

pytestmark = pytest.mark.usefixtures("own_cache")

ARRAYS = {"shard_ends": np.array([2]), "keys": np.arange(5, dtype=np.uint8), "key_ends": np.array([3, 5])}


@pytest.fixture
def folder():
    """The name of a table that is not there yet."""
    return table_files.folder_of("0" * 16, "1" * 16)


def store(folder, parts=(ARRAYS,)):
    return table_files.store(folder, parts, lambda _: {}, lambda: folder)


def test_a_writer_that_fails_leaves_nothing(folder):
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def parts(error=error):
            yield {"keys": np.zeros(3, np.uint8)}
            assert list(folder.parent.glob(".*.partial/keys")), "parts are not written as they come"
            raise error

        with pytest.raises(type(error)):
            store(folder, parts())
        assert not list(folder.parent.iterdir())


@pytest.mark.parametrize("lacking", [["keys"], ["key_ends"], ["shard_ends"], list(ARRAYS)])
def test_a_header_that_lacks_arrays_is_no_table_and_makes_way_for_one(folder, lacking):
    store(folder)
    header = json.loads((folder / table_files.HEADER).read_text())
    for name in lacking:
        del header["bytes"][name]
    (folder / table_files.HEADER).write_text(json.dumps(header))
    assert table_files.load(folder) is None
    store(folder)
    arrays, _ = table_files.load(folder)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }


def test_a_table_is_locked_before_any_of_its_arrays_is_mapped(folder, monkeypatch):
    store(folder)
    mapped, order = table_files._mapped, []
    monkeypatch.setattr(
        table_files, "_mapped", lambda file, size: order.append(file.name) or mapped(file, size)
    )
    assert table_files.load(folder) is not None
    assert order[0] == table_files._LOCKED and sorted(order) == sorted(ARRAYS)


def test_who_maps_a_table_that_another_is_just_removing_waits_and_does_not_map_it(folder, monkeypatch):
    store(folder)
    asks, flock, rename = threading.Event(), fcntl.flock, Path.rename

    def ask(file, operation):
        if operation & fcntl.LOCK_SH:
            asks.set()
        flock(file, operation)

    def rename_and_make_again(path, target):
        """Lets the other process open the table before it goes, and finds that it does not go on."""
        mapping.append(pool.submit(table_files.load, folder))
        assert asks.wait(60)
        with pytest.raises(TimeoutError):
            mapping[0].result(0.2)
        rename(path, target)
        shutil.copytree(target, folder)

    mapping = []
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(fcntl, "flock", ask)
        monkeypatch.setattr(Path, "rename", rename_and_make_again)
        table_files._remove_unmapped(folder)
        assert mapping[0].result() is None
    assert table_files.load(folder) is not None and list(folder.parent.iterdir()) == [folder]


def test_a_table_that_gets_its_name_while_its_bytes_are_counted_does_not_end_the_waiting(folder, monkeypatch):
    """Python 3.11 says of a folder that was listed and has gone that it is not there."""
    growing, listed = table_files._beside(folder), table_files.os.scandir
    growing.mkdir(parents=True)
    (growing / "keys").write_bytes(b"123")

    def scandir(path):
        if growing.exists() and Path(path) == growing:
            growing.rename(folder)
        return listed(path)

    monkeypatch.setattr(table_files.os, "scandir", scandir)
    assert table_files._written(folder.parent, "0" * 16) in (0, 3)


def test_where_tables_may_not_be_listed_a_run_starts_and_removes_none(folder, monkeypatch):
    def iterdir(path):
        if path == folder.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert store(folder) == folder
    table_files.used(folder)
    assert table_files.load(folder) is not None
