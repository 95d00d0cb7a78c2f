"""Shards made to run code or to write somewhere: they are read as data, and nothing else happens."""

import ast
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data.shard_files import caption, picture
from data.shard_mutations import END, member, pax
from data.whole_sources import iterate_once

import flava_ds.data
from flava_ds.config import UNCHANGED
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.loader import StepLoader
from flava_ds.errors import DataError
from flava_ds.prepare.index import build_indexes
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.index import load_indexes
from flava_ds.storage.shards import list_shards

GOOD = 8


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = str(sentinel)

    def __reduce__(self):
        return open, (self.sentinel, "w")


def hostile_members(sentinel: Path) -> list[bytes]:
    """Eight usable pairs among members that somebody hopes will be executed, extracted or followed."""
    code, shell = f"open({str(sentinel)!r}, 'w')", f"touch {sentinel}"
    bomb = pickle.dumps(Payload(sentinel))
    parts = []
    for number in range(GOOD):
        key = b"%09d" % number
        record = {
            "captions": [caption(number)],
            "__class__": code,
            "__reduce__": [code],
            "exec": code,
            "$ref": f"pipe:{shell}",
            "url": f"pipe:{shell}",
        }
        parts += [
            member(key + b".webp", picture(number)),
            member(key + b".txt", f"{caption(number)} `{shell}`".encode()),
        ]
        parts += [member(key + b".json", json.dumps(record).encode())]
        parts += [
            member(key + suffix, bomb)
            for suffix in (b".pkl", b".pyd", b".pth", b".pt", b".pickle", b".codes.npy", b".npy", b".cls")
        ]
        parts += [
            member(key + b".py", code.encode()),
            member(key + b".yaml", f"!!python/object/apply:os.system ['{shell}']".encode()),
        ]
    for name in (f"$({shell})", f"; {shell};", f"`{shell}`", f"| {shell}", "a\nb", "\x1b]0;title\x07\x1b[2J"):
        name = name.replace("/", "_").encode()
        parts += [member(name + b".webp", b""), member(name + b".txt", b"named")]
    for name in (
        b"../" * 6 + str(sentinel)[1:].encode(),
        str(sentinel).encode(),
        b"a/../../" + sentinel.name.encode(),
    ):
        parts += [
            pax((b"path", name + b".txt")) + member(b"x", b"outside"),
            pax((b"path", name + b".webp")) + member(b"x", picture(1)),
        ]
    parts += [
        member(b"__key__.txt", b"key"),
        member(b"__url__.txt", f"pipe:{shell}".encode()),
        member(b"__local_path__.txt", b"/etc/passwd"),
    ]
    for kind in b"1", b"2", b"3", b"4", b"6":
        parts.append(member(b"link" + kind + b".txt", b"", kind))
    return parts


@pytest.fixture
def hostile(tmp_path, make_config, monkeypatch):
    """The configuration of a run over the hostile shard, the sentinel that must never exist, and what lies in
    the folders around before.
    """
    monkeypatch.delenv("FLAVA_DS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "shards"
    folder.mkdir()
    sentinel = tmp_path / "ran"
    (folder / "0.tar").write_bytes(b"".join([*hostile_members(sentinel), END]))
    config = make_config(data={"num_workers": 1})
    source = replace(
        config.data.sources["pairs"], shards=str(folder), max_skipped_share=1.0, caption_key=None
    )
    return config.with_sources({"pairs": source}), sentinel


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "cache" not in path.parts and path.suffix != ".npz"}


def test_nothing_runs_and_nothing_is_written(hostile, tmp_path, capsys):
    config, sentinel = hostile
    source = config.data.sources["pairs"]
    before = files(tmp_path), set(Path.cwd().iterdir()), set(Path("/tmp").glob("ran*"))
    build_indexes([source.shards])
    for caption_key in (None, "captions"):
        case = config.with_sources({"pairs": replace(source, caption_key=caption_key)})
        once = [sample.key for samples in iterate_once(case, "pairs") for sample in samples]
        seen = {key for batches in StepLoader(case) for batch in batches for key in batch.keys}
        assert once == [f"{number:09d}" for number in range(GOOD)] and seen <= set(once)
    coded = replace(source, kind="image", image_codes_key="codes.npy", transform=UNCHANGED)
    assert reasons(IndexedShards(config.with_sources({"pairs": coded}), "pairs")) == {"bad image codes"}
    assert before == (files(tmp_path), set(Path.cwd().iterdir()), set(Path("/tmp").glob("ran*")))
    assert not sentinel.exists()
    found = IndexedShards(config, "pairs").table.faults
    assert (
        found["pickled member"] == 5 * GOOD
        and found["unsafe name"] == 6
        and "\x1b" not in capsys.readouterr().out
    )


def reasons(source: IndexedShards) -> set[str]:
    """Returns the reasons for which samples cannot be decoded."""
    found = set()
    for index in range(len(source)):
        with pytest.raises(SampleFault) as caught:
            source.decode(source.read(index), index, 0)
        found.add(caught.value.reason)
    return found


@pytest.mark.parametrize(
    "entry",
    [
        "pipe:touch {0}",
        "pipe:touch {0}.tar",
        "simplecache::pipe:touch {0}",
        "file://pipe:touch {0}",
        "$(touch {0}).tar",
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_commands_in_the_names_of_shards_are_refused_in_one_line(tmp_path, entry, listed):
    sentinel, shards = tmp_path / "ran", entry.format(tmp_path / "ran")
    if listed:
        (tmp_path / "list.txt").write_text(shards + "\n")
        shards = str(tmp_path / "list.txt")
    with pytest.raises(DataError) as caught:
        list(load_indexes(list_shards(shards, "x")))
    assert (
        "\n" not in str(caught.value)
        and str(caught.value).startswith("source 'x': ")
        and not sentinel.exists()
    )


def test_a_hostile_member_name_cannot_write_to_the_terminal(hostile, caplog):
    config, _ = hostile
    loader = StepLoader(replace(config, data=replace(config.data, num_workers=0)))
    loader.readers["pairs"].batch(np.arange(32))
    lines = [record.getMessage() for record in caplog.records]
    assert any("skipped" in line for line in lines) and all(line.isprintable() for line in lines)


def test_the_reader_of_shards_imports_nothing_that_runs_data():
    """Neither unpickling nor YAML nor webdataset's own decoders, nor a shell."""
    banned = {
        "pickle",
        "marshal",
        "shelve",
        "dill",
        "joblib",
        "yaml",
        "webdataset",
        "subprocess",
        "tarfile",
        "zipfile",
    }
    for path in Path(flava_ds.data.__path__[0]).glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        names |= {
            node.module.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
        }
        calls = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        of_webdataset = {
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("wds.")
        }
        # nothing that opens
        assert of_webdataset <= {
            "wds.DataPipeline",
            "wds.shuffle",
            "wds.tariterators",
            "wds.tariterators.group_by_keys",
        }, path.name
        assert not (names & banned) - ({"webdataset"} if path.name == "stream_pipeline.py" else set()), (
            path.name
        )
        assert not calls & {"eval", "exec", "compile", "__import__"}, path.name
