"""Entries come back as they were, or not at all."""

import dataclasses
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flava_ds.scaling import kept
from flava_ds.scaling.captions import Lengths
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


def test_a_model_s_work_is_the_same_after_a_round():
    assert kept.find("work", ["key"], ModelWork) is None
    kept.keep("work", ["key"], WORK)
    assert kept.find("work", ["key"], ModelWork) == WORK
    assert kept.find("work", ["another"], ModelWork) is None


def test_a_file_s_place_and_contents_are_part_of_a_key_and_an_edit_meanwhile_keeps_nothing(tmp_path):
    own, done = tmp_path / "vocab.txt", []

    def ask(edit=None):
        def find_out():
            done.append(own.read_text())
            if edit is not None:
                own.write_text(edit)
            return len(done[-1])

        return kept.kept_or_new("work", lambda: kept.contents([own]), int, find_out)

    own.write_text("one")
    assert [ask(), ask()] == [3, 3] and done == ["one"]
    own.write_text("two more")
    assert ask(edit="two more words") == 8 and ask() == 14 and done[1:] == ["two more", "two more words"]
    own.write_text("two more")
    assert ask() == 8 and len(done) == 4, "what was edited while it was read is not kept"
    (tmp_path / "other").mkdir()
    assert kept.contents([own]) != kept.contents([own.rename(tmp_path / "other" / "vocab.txt")])
    (missing,) = kept.contents([own])
    assert missing[1] == ""
    assert [kept.kept_or_new("work", lambda: None, int, lambda n=n: n) for n in (1, 2)] == [1, 2]


def test_an_entry_that_its_type_refuses_is_damaged(caplog):
    kept.keep("captions", ["key"], [{}, "shards"])
    assert kept.find("captions", ["key"], Lengths) is None
    assert "is damaged (shards: the histogram of caption lengths is empty" in caplog.text


def test_without_a_home_nothing_is_kept_and_a_line_says_so(monkeypatch, caplog):
    monkeypatch.setenv(CACHE_VARIABLE, "~no_such_user_here/cache")
    assert kept.kept_or_new("work", lambda: ["key"], int, lambda: 5) == 5
    (record,) = caplog.records
    assert "there is no cache (" in record.getMessage()


def test_writers_at_the_same_time_do_not_stumble_over_each_other_s_clean_up(monkeypatch, caplog):
    monkeypatch.setattr(kept, "MOST_ENTRIES", 4)
    first = kept.place_of("work", "first")
    kept.keep("work", "first", [1])
    real, gone = Path.stat, []

    def stat(path, **options):  # another writer deletes between the listing and the look at the entry
        if path == first and not gone:
            gone.append(path)
            path.unlink()
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    with ThreadPoolExecutor(4) as writers:
        list(writers.map(lambda key: kept.keep("work", key, [key]), range(80)))
    assert gone and not caplog.records
    monkeypatch.setattr(Path, "stat", real)
    kept.keep("work", "last", [1])
    assert len(list(first.parent.iterdir())) == 4


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
