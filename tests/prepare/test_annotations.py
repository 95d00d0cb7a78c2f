"""Readers for published file forms: packed files, arrays element by element, tables with and without a
header, errors that name the place.
"""

import bz2
import gzip
import json

import pytest

from flava_ds.errors import DataError
from flava_ds.prepare import annotations
from flava_ds.prepare.annotations import (
    clean,
    json_array,
    json_lines,
    load_json,
    name_in,
    open_text,
    position_paths,
    table,
)


def test_names_in_urls():
    assert name_in(" http://x/a/b.jpg?size=1 ") == "b.jpg"
    assert name_in("http://[broken/1.jpg") == name_in("") == ""


def test_clean_makes_one_line_that_utf8_can_store():
    assert clean("  a\tdog\r\n on  \ud83d the\0moon ") == "a dog on the moon"
    assert clean(None) == clean(3) == ""


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_files_are_read_on_the_fly(tmp_path, suffix, pack):
    path = tmp_path / f"a.txt{suffix}"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(pack(mark + "größe\n".encode()))
        with open_text(path) as stream:
            assert stream.read() == "größe\n"
    if suffix:
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(DataError, match=f"a.txt{suffix}' cannot be read"), open_text(path) as stream:
            stream.read()


def test_bytes_of_another_encoding_are_replaced_or_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("ein großer Hund".encode("cp1252"))
    with open_text(path) as stream:
        assert stream.read() == "ein gro\ufffder Hund"
    with (
        pytest.raises(DataError, match="a.txt', line 1: not UTF-8: byte 0xdf after 'ein gro'; save it"),
        open_text(path, strict=True) as stream,
    ):
        stream.read()


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open)])
def test_the_line_of_a_refused_byte_is_named(tmp_path, suffix, opener):
    path = tmp_path / f"a.txt{suffix}"
    with opener(path, "wb") as file:
        file.write("größer\n\n".encode() * 10_000 + "größer\n".encode("latin-1") * 2)
    with pytest.raises(DataError, match="', line 20001: not UTF-8"), open_text(path, strict=True) as stream:
        stream.read()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="gone.json' cannot be read: No such file"):
        load_json(tmp_path / "gone.json")


ELEMENTS = [
    {"id": 1, "text": 'a ] "quoted" [ one'},
    [],
    12345,
    "x" * 5000,
    {"nested": [{"a": [1, 2]}]},
    -3.5e2,
    None,
]


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("indent", [None, 2])
def test_array_is_read_element_by_element_whatever_the_chunk(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(annotations, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(" \n" * 2 + json.dumps(ELEMENTS, indent=indent))
    assert list(json_array(path)) == ELEMENTS
    path.write_text("[]")
    assert list(json_array(path)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "begins with"),
        ('[{"a": 1}, {"a": 2', "ends early, after 1 elements"),
        ("[1, 2", "ends early"),
    ],
)
def test_array_that_is_none_or_breaks_off_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=f"a.json'.*{message}"):
        list(json_array(tmp_path / "a.json"))


def test_lines_name_their_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(json_lines(path)) == [{"a": 1}, {"a": 2}]
    for bad, message in (("{broken", "line 2: not JSON"), ("[1]", "line 2: list instead of an object")):
        path.write_text(f'{{"a": 1}}\n{bad}\n')
        with pytest.raises(DataError, match=message):
            list(json_lines(path))


def test_object_lacks_a_field(tmp_path):
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="a.json': no field 'annotations'"):
        load_json(tmp_path / "a.json", "images", "annotations")


def test_table_with_and_without_header(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('a "dog" and\thttp://x/1.jpg\n')
    assert list(table(path, ("caption", "url"))) == [{"caption": 'a "dog" and', "url": "http://x/1.jpg"}]
    path.write_text("url\tcaption\thash\nhttp://x/1.jpg\ta dog\tff\n")
    assert list(table(path, ("caption", "url"))) == [
        {"caption": "a dog", "url": "http://x/1.jpg", "hash": "ff"}
    ]


def test_quoted_table_may_hold_tabs_and_lines(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('en\t"two\nlines\tand ""quotes"""\n')
    assert list(table(path, ("language", "caption"), quoted=True)) == [
        {"language": "en", "caption": 'two\nlines\tand "quotes"'}
    ]


def test_row_of_another_width_is_named(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tb\nc\n")
    with pytest.raises(DataError, match=r"a.tsv', row 2: 1 columns instead of 2 \(caption, url\)"):
        list(table(tmp_path / "a.tsv", ("caption", "url")))


def test_position_paths_are_those_of_img2dataset():
    assert position_paths(0) == ("00000/000000000.jpg",) and position_paths(123_456) == (
        "00012/000123456.jpg",
    )
