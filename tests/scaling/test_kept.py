"""Entries come back as they were, or not at all."""

import dataclasses
import json
from collections.abc import Mapping

import pytest

from flava_ds.scaling import kept
from flava_ds.scaling.work import Amount, KindWork, ModelWork, Operator, ParameterGroup
from flava_ds.storage.files import CACHE_VARIABLE

PRODUCT = Operator(
    "mm", "forward", False, 3, Amount(0, 2.5), Amount(1e9 / 3), Amount(7), Amount(8), Amount(9)
)
WORK = ModelWork(
    "r",
    (ParameterGroup(("pair", "text"), 12, (4, 8)),),
    5,
    {"image_encoder": 12},
    0,
    {"pmd": KindWork("pair", "pmd", (PRODUCT, dataclasses.replace(PRODUCT, rows=None, custom=True)),
                     {"a": Amount(pair=0.1)}, Amount(1), Amount(2), Amount(3), Amount(4), has_pictures=True)},
    2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache that nothing else has written to."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def test_a_model_s_work_is_the_same_after_a_round(tmp_path):
    own = tmp_path / "plugin.py"
    own.write_text("one = 1\n")
    assert kept.find("work", ["key"], ModelWork) is None
    kept.keep("work", ["key"], WORK, [own])
    assert kept.find("work", ["key"], ModelWork) == WORK
    assert kept.find("work", ["another"], ModelWork) is None
    own.write_text("one = 2\n")
    assert kept.find("work", ["key"], ModelWork) is None, "the user's file has changed"
    own.unlink()
    assert kept.find("work", ["key"], ModelWork) is None


def test_other_code_finds_nothing(monkeypatch):
    kept.keep("work", ["key"], WORK)
    package, torch, numpy = kept.code()
    for other in (["0" * 16, torch, numpy], [package, "2.0.0", numpy]):
        monkeypatch.setattr(kept, "code", lambda other=other: other)
        assert kept.find("work", ["key"], ModelWork) is None


def damages():
    """Yields what may have become of a file, by name: from its text to another one."""
    changed = lambda **new: lambda text: json.dumps(json.loads(text) | new)  # noqa: E731
    yield "cut", lambda text: text[: len(text) // 2]
    yield "empty", lambda text: ""
    yield "a number", lambda text: text.replace("2.5", "2.6")
    yield "another's", changed(name="work-0.json")
    yield "no entry", lambda text: "[]"
    for name, value in (("no work", [1]), ("no number", ["r", [], True, {}, 0, {}, 2])):
        yield name, changed(value=value, sha256=kept._hash(value))


@pytest.mark.parametrize("damage", [pytest.param(own, id=name) for name, own in damages()])
def test_a_damaged_entry_is_not_used_and_told_in_a_line(damage, caplog):
    kept.keep("work", ["key"], WORK)
    file = kept.place_of("work", ["key"])
    file.write_text(damage(file.read_text()))
    assert kept.find("work", ["key"], ModelWork) is None
    (record,) = caplog.records
    assert str(file) in record.getMessage() and "is damaged (" in record.getMessage()
    kept.keep("work", ["key"], WORK)
    assert kept.find("work", ["key"], ModelWork) == WORK


def test_the_oldest_entries_go_and_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(kept, "MOST_ENTRIES", 2)
    for key in range(4):
        kept.keep("work", key, [key])
    assert [kept.find("work", key, Mapping[str, int] | None) for key in (9,)] == [None]
    assert len(list(kept.place_of("work", 0).parent.iterdir())) == 2
    assert kept.find("work", 3, tuple[int, ...]) == (3,)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    kept.keep("work", 1, [1])
    assert "cannot be written (Not a directory)" in caplog.text
