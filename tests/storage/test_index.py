"""The index agrees with tarfile, survives damage, notices change, and runs nothing."""

import hashlib
import io
import logging
import os
import pickle
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data.shard_files import pair_members, write_tar

from flava_ds.errors import DataError
from flava_ds.storage import index as index_module
from flava_ds.storage import index_files as index_files_module
from flava_ds.storage.files import LocalFile
from flava_ds.storage.index import load_index, load_indexes
from flava_ds.storage.index_files import _encode, index_files
from flava_ds.storage.members import sample_key
from flava_ds.storage.sample_table import SampleTable
from flava_ds.storage.shard_index import scan_shard
from flava_ds.storage.tar_headers import tar_members

LONG = "folder/" + "x" * 180 + "/" + "y" * 120


def members_of(path):
    """The members as our reader and as tarfile see them."""
    faults = Counter()
    ours = [(name.decode(), offset, size) for name, offset, size in tar_members(LocalFile(path), faults)]
    with tarfile.open(path) as tar:
        theirs = [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    return ours, theirs, faults


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_agree_with_tarfile_in_every_format(make_shard, form):
    names = ["a.txt", "dir/b.c.txt", "folder/" + "z" * 90 + ".txt", "héé.txt", "empty.txt"]
    names += [LONG + ".txt"] if form != tarfile.USTAR_FORMAT else []
    path = make_shard(
        "a.tar", [(name, b"" if "empty" in name else name.encode() * 40) for name in names], form
    )
    ours, theirs, faults = members_of(path)
    assert ours == theirs and len(ours) == len(names) and not faults


def test_links_folders_and_devices_are_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("d", tarfile.DIRTYPE),
            ("l.txt", tarfile.SYMTYPE),
            ("h.txt", tarfile.LNKTYPE),
            ("f.txt", tarfile.FIFOTYPE),
            ("r.txt", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info, io.BytesIO(b""))
    assert [name for name, _, _ in members_of(path)[0]] == ["r.txt"]


def test_a_sparse_file_with_many_holes_is_passed_over(tmp_path):
    """Two blocks of holes lie between its header and its bytes."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("a.txt", "sparse.txt", "z.txt"):
            info = tarfile.TarInfo(name)
            info.size = 512
            tar.addfile(info, io.BytesIO(bytes([65]) * 512))
    data = bytearray(path.read_bytes())
    header = slice(1024, 1536)
    data[1024 + 156 : 1024 + 157] = b"S"
    data[1024 + 482] = 1
    data[1024 + 483 : 1024 + 495] = b"00000100000\0"
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[header])
    data[1536:1536] = bytes(504) + b"\1" + bytes(7) + bytes(512)
    path.write_bytes(bytes(data))
    found = Counter()
    assert [name for name, *_ in tar_members(LocalFile(path), found)] == [b"a.txt", b"z.txt"] and not found
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["a.txt", "sparse.txt", "z.txt"]


def test_keys_end_at_the_first_dot_of_the_base_name():
    assert sample_key(b"a.b/c.d.JPG") == (b"a.b/c", "d.jpg")
    assert sample_key(b"000.codes.npy") == (b"000", "codes.npy")
    assert sample_key(b"../../etc/passwd.txt") == (b"../../etc/passwd", "txt")


def test_members_are_found_by_sample_and_suffix(make_shard):
    members = [
        ("2.txt", b"two"),
        ("1.json", b"{}"),
        ("1.txt", b"one"),
        ("x.pkl", b"no"),
        ("1.jpg", b"pixels"),
        ("._1.txt", b"mac"),
        ("1.seg.png", b"a mask"),
        ("at 10.15.30.jpg", b"a key with dots"),
        ("1.cls", b"7"),
        ("1.txt", b"again"),
    ]
    path = make_shard("a.tar", members)
    index = scan_shard(path)
    offset, size = index.column(("txt",))
    data = path.read_bytes()
    assert [data[o : o + s] for o, s in zip(offset, size, strict=True)] == [b"two", b"one"]
    assert index.column(("webp", "jpg"))[0].tolist()[0] == -1
    large = replace(index, member_size=index.member_size + 2**32)
    assert set(large.column(("txt",))[1].tolist()) == {2**32 - 1}, "a huge member is no small one"
    assert index.faults == {"duplicate member": 1, "pickled member": 1, "suffix with a dot": 2}
    assert "pkl" not in index.suffixes


@pytest.mark.parametrize("member", [15, 1, None])
def test_a_truncated_shard_keeps_what_is_readable(make_shard, member):
    path = make_shard("a.tar", pair_members(range(10), size=64))
    whole = scan_shard(path)
    end = 100 if member is None else int(whole.member_offset[member]) + 7
    with path.open("r+b") as stream:
        stream.truncate(end)
    index = scan_shard(path)
    assert len(index.member_offset) == (member or 0)
    assert index.faults == {"truncated shard": 1}


def test_a_broken_header_ends_the_shard(make_shard):
    path = make_shard("a.tar", pair_members(range(4)))
    second = int(scan_shard(path).member_offset[3]) - 512
    with path.open("r+b") as stream:
        stream.seek(second + 3)
        stream.write(b"garbage")
    index = scan_shard(path)
    assert len(index) == 1 and index.faults == {"broken header": 1}


def test_the_index_file_is_reused_until_the_shard_changes(make_shard):
    path = make_shard("a.tar", pair_members(range(5)))
    load_index(path)
    beside, _ = index_files(path)
    assert beside.is_file() and [p.name for p in path.parent.glob(".index-*")] == []
    written = beside.stat().st_mtime_ns
    again = load_index(path)
    assert beside.stat().st_mtime_ns == written and len(again) == 5
    assert (
        np.array_equal(again.member_offset, scan_shard(path).member_offset)
        and again.suffixes == scan_shard(path).suffixes
    )
    write_tar(path, pair_members(range(6)))
    assert len(load_index(path)) == 6
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    before = beside.stat().st_mtime_ns
    load_index(path)
    assert beside.stat().st_mtime_ns != before


@pytest.mark.parametrize("content", ["no member", "an empty member at the end"])
def test_the_index_of_an_unusual_shard_is_reused(make_shard, content):
    path = make_shard("a.tar", [("1.txt", b"")] if content != "no member" else [])
    with path.open("r+b") as stream:
        stream.truncate(512)
    written = [len(load_index(path)), index_files(path)[0].stat().st_mtime_ns]
    assert (
        written
        == [len(load_index(path)), index_files(path)[0].stat().st_mtime_ns]
        == [int(content != "no member"), written[1]]
    )


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_damaged_and_hostile_index_files_are_rebuilt(make_shard, tmp_path):
    path = make_shard("a.tar", pair_members(range(5)))
    beside, _ = index_files(path)
    for content in (b"", b"PK\x03\x04 half a zip", pickle.dumps(Bomb(str(tmp_path / "ran")))):
        beside.write_bytes(content)
        assert len(load_index(path)) == 5
    np.savez(beside, header=np.array([Bomb(str(tmp_path / "ran"))], dtype=object))
    assert len(load_index(path)) == 5
    assert not (tmp_path / "ran").exists()


CONTRADICTIONS = {
    "samples": lambda index: {"member_sample": index.member_sample + 100},
    "keys": lambda index: {"key_ends": index.key_ends * 1000},
    "backward keys": lambda index: {
        "key_ends": np.concatenate([index.key_ends[:3][::-1], index.key_ends[3:]])
    },
    "negative": lambda index: {"member_offset": index.member_offset - 10**6},
    "overflow": lambda index: {"member_size": index.member_size + (2**63 - 1 - index.member_size.max())},
    "beyond": lambda index: {"member_offset": index.member_offset + 10**9},
    "lengths": lambda index: {"member_offset": index.member_offset[:-3]},
    "suffixes": lambda index: {"suffixes": ()},
    "types": lambda index: {"member_suffix": index.member_suffix.astype(float)},
    "faults": lambda index: {"faults": {"duplicate member": "1"}},
    "less than no faults": lambda index: {"faults": {"truncated shard": -(10**6)}},
    "true faults": lambda index: {"faults": {"truncated shard": True}},
    "faults of other names": lambda index: {"faults": {"\x1b[2J": 1}},
    "a number for a checksum": lambda index: {"checksum": 5},
    "true checksum": lambda index: {"checksum": True},
    "no text in a checksum": lambda index: {"checksum": ["0" * 64]},
    "half a character": lambda index: {"checksum": "\ud800" * 64},
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_an_index_that_contradicts_itself_is_rebuilt(make_shard, case):
    """It may have come with the shard."""
    path = make_shard("a.tar", pair_members(range(5)))
    good, (beside, _) = load_index(path), index_files(path)
    beside.write_bytes(_encode(replace(good, **CONTRADICTIONS[case](good))))
    assert vars(load_index(path)).keys() == vars(good).keys()
    for name, value in vars(load_index(path)).items():
        assert np.array_equal(value, getattr(good, name)), name


@pytest.mark.parametrize("case", ["terabytes", "packed"])
def test_an_index_that_claims_to_be_large_is_rebuilt(make_shard, case):
    path = make_shard("a.tar", pair_members(range(5)))
    good, (beside, _), claim = load_index(path), index_files(path), io.BytesIO()
    np.lib.format.write_array_header_1_0(claim, {"descr": "<i8", "fortran_order": False, "shape": (10**15,)})
    with (
        zipfile.ZipFile(io.BytesIO(_encode(good))) as old,
        zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED if case == "packed" else 0) as new,
    ):
        for name in old.namelist():
            new.writestr(
                name,
                claim.getvalue() if case == "terabytes" and name == "member_offset.npy" else old.read(name),
            )
    written = beside.read_bytes()
    assert (
        np.array_equal(load_index(path).member_offset, good.member_offset) and beside.read_bytes() != written
    )


def test_an_index_with_further_arrays_is_rebuilt(make_shard):
    """Every one would be loaded, and a small file may have thousands that share their bytes."""
    path = make_shard("a.tar", pair_members(range(5)))
    good, (beside, _) = load_index(path), index_files(path)
    with zipfile.ZipFile(beside, "a") as file:
        file.writestr("further.npy", b"")
    written = beside.read_bytes()
    assert np.array_equal(load_index(path).member_offset, good.member_offset)
    assert beside.read_bytes() != written


def test_an_index_of_any_size_takes_no_memory(make_shard):
    """One of 300 GiB of holes was read whole."""
    path = make_shard("a.tar", pair_members(range(5)))
    good, (beside, _) = load_index(path), index_files(path)
    os.truncate(beside, 300 * 2**30)
    assert np.array_equal(load_index(path).member_offset, good.member_offset)
    assert beside.stat().st_size < 2**20


def test_an_unwritable_folder_uses_the_cache(make_shard, tmp_path, monkeypatch):
    path = make_shard("a.tar", pair_members(range(3)))
    monkeypatch.delenv("FLAVA_DS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside, cached = index_files(path)
    beside.mkdir()  # a folder in the way of the file refuses the rename, for root too
    load_index(path)
    assert cached.is_file() and cached.is_relative_to(tmp_path / "cache")
    assert len(load_index(path)) == 3


def test_the_names_of_cached_indexes_are_those_of_resolved_shards(make_shard, tmp_path, monkeypatch):
    """Links to a shard, to its folder and up from there: an existing cache stays valid."""
    path = make_shard("real/deep/a.tar", pair_members(range(3)))
    (tmp_path / "folder").symlink_to(path.parent)
    (tmp_path / "folder" / "link.tar").symlink_to(path)
    monkeypatch.chdir(path.parent)
    for name in ("folder/a.tar", "folder/link.tar", "folder/../deep/a.tar", "gone/a.tar"):
        for shard in (tmp_path / name, Path(os.path.relpath(tmp_path)) / name, Path("a.tar")):
            place = hashlib.sha256(str(shard.resolve()).encode()).hexdigest()[:32]
            assert index_files(shard)[1].name == f"{place}.npz"


def test_states_of_indexes_resolve_a_folder_once(make_shard, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAVA_DS_CACHE", str(tmp_path / "cache"))
    shards = [make_shard(f"{n}.tar", pair_members([n])) for n in range(4)]
    index_files(shards[0])[0].mkdir()
    load_index(shards[0])  # which therefore goes to the cache
    asked = Counter()
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: asked.update([str(path)]) or real(path))
    monkeypatch.setattr(index_files_module, "AT_ONCE", 1)
    cached = index_files(shards[0])[1].stat()
    asked.clear()
    states = index_files_module.index_states(shards)
    assert [len(own) for own in states] == [2, 1, 1, 1]
    assert states[0][1] == (cached.st_size, cached.st_mtime_ns)
    assert asked == {str(shards[0].parent): 1}


def test_the_table_joins_shards_and_leaves_out_incomplete_samples(make_shard):
    shards = [
        make_shard(f"{n}.tar", pair_members(range(10 * n, 10 * n + size))) for n, size in enumerate((3, 1, 4))
    ]
    shards.append(
        make_shard("3.tar", [("alone.txt", b"no picture"), ("bare.webp", b"no text"), *pair_members([30])])
    )
    table = SampleTable(
        shards, {"image": ("webp",), "caption": ("txt",)}, {"image": "no image", "caption": "missing caption"}
    )
    assert len(table) == 9
    assert [int(table.key(i)) for i in range(9)] == [0, 1, 2, 10, 20, 21, 22, 23, 30]
    assert [table.shard_of(i) for i in range(9)] == [0, 0, 0, 1, 2, 2, 2, 2, 3]
    assert table.faults == {"no image": 1, "missing caption": 1}


def test_a_source_is_known_by_its_keys_wherever_its_shards_lie(make_shard):
    def fingerprint(*shards):
        return SampleTable(
            [make_shard(f"{folder}/{n}.tar", pair_members(keys)) for n, (folder, keys) in enumerate(shards)],
            {"image": ("webp",)},
            {},
        ).fingerprint

    whole = fingerprint(("a", range(5)), ("a", range(5, 8)))
    assert whole == fingerprint(("b", range(5)), ("b", range(5, 8)))
    others = {
        fingerprint(("c", range(4)), ("c", range(4, 8))),
        fingerprint(("d", range(1, 6)), ("d", range(5, 8))),
        fingerprint(("e", range(8))),
    }
    assert len(others | {whole}) == 4


def test_no_bytes_in_a_header_end_the_search_for_indexes(make_shard):
    """They may have come with the shard, from anybody, and numpy raises all kinds of errors."""
    path = make_shard("a.tar", pair_members(range(3)))
    expected, (beside, _) = load_index(path).names(), index_files(path)
    whole, random = beside.read_bytes(), np.random.default_rng(0)
    shape = whole.index(b"'shape': (")
    damaged = [whole[: shape + 10] + b"9" * 12 + whole[shape + 22 :]]
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[random.integers(26, 260)] ^= 1 << random.integers(8)
        damaged.append(bytes(flipped))
    for data in damaged:
        beside.write_bytes(data)
        assert load_index(path).names() == expected


def test_an_index_is_decoded_once_and_a_damaged_one_is_written_again(make_shard, monkeypatch):
    shards = [make_shard(f"{n}.tar", pair_members(range(n, n + 3))) for n in range(20)]
    expected = [index.names() for index in load_indexes(shards)]
    decoded = []
    decode = index_files_module._decode
    monkeypatch.setattr(index_files_module, "_decode", lambda *args: decoded.append(1) or decode(*args))
    monkeypatch.setattr(index_module, "scan_shard", lambda *_, **__: pytest.fail("a shard was scanned"))
    assert [index.names() for index in load_indexes(shards)] == expected and len(decoded) == len(shards)
    monkeypatch.undo()
    beside, _ = index_files(shards[7])
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-40])  # behind the header
    assert [index.names() for index in load_indexes(shards)] == expected
    assert beside.read_bytes() == whole


def test_a_checksum_is_added_to_an_index_without_one(make_shard):
    path = make_shard("a.tar", pair_members(range(5)))
    plain = load_index(path)
    (summed,) = load_indexes([path], checksum=True)
    assert plain.checksum is None and summed.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert np.array_equal(plain.member_offset, summed.member_offset)
    assert load_index(path).checksum == summed.checksum


def test_several_processes_index_alike_and_a_second_call_goes_on(make_shard, monkeypatch, caplog):
    shards = [make_shard(f"{n}.tar", pair_members(range(10 * n, 10 * n + n + 1))) for n in range(4)]
    caplog.set_level(logging.INFO)
    load_index(shards[2])
    monkeypatch.setattr("flava_ds.storage.index._WORTH_A_PROCESS", 1)
    assert [len(index) for index in load_indexes(shards, processes=2)] == [1, 2, 3, 4]
    assert "indexing 3 of 4 shards" in caplog.text
    caplog.clear()
    assert [len(index) for index in load_indexes(shards)] == [1, 2, 3, 4] and not caplog.text
    shards[1].unlink()
    with pytest.raises(DataError, match="1.tar' cannot be read"):
        list(load_indexes(shards))
