"""A table of one's own: pictures with their captions and other columns, through the command."""

import json

import pytest
from data.shard_files import read_tar
from evaluation.color_world import png

from flava_ds.cli import main
from flava_ds.errors import DataError
from flava_ds.prepare.annotations import NO_CAPTION, Dropped
from flava_ds.prepare.own_table import read


def test_the_command_writes_a_sample_for_each_picture(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name, color in {"a.png": "blue", "b.png": "red"}.items():
        (tmp_path / "photos" / name).write_bytes(png(color, 0))
    table = tmp_path / "captions.csv"
    table.write_text(
        '\ufeff"filepath",title,label\nphotos/a.png,"A dog, asleep",3\nphotos/b.png,7,x\n'
        "photos/a.png,One dog,3\nphotos/gone.png,nothing,0\n"
    )
    out = tmp_path / "shards"
    assert main(["prepare", "own", str(table), "--images", str(tmp_path), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 samples from 3 entries" in printed and "left out: no image file 1" in printed
    members = read_tar(out / "00000.tar")
    assert members["000000000.png"] == (tmp_path / "photos" / "a.png").read_bytes()
    assert members["000000000.txt"] == b"A dog, asleep" and members["000000001.txt"] == b"7"
    assert [json.loads(members[f"00000000{number}.json"]) for number in (0, 1)] == [
        {"file": "photos/a.png", "label": 3, "captions": ["A dog, asleep", "One dog"]},
        {"file": "photos/b.png", "label": "x", "captions": ["7"]},
    ]


def test_pictures_that_are_nowhere_end_it_and_the_right_folder_follows(tmp_path, capsys, caplog):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png("red", 0))
    (tmp_path / "captions.tsv").write_text("file_name\ttext\tcaption\na.png\tDSC1\ta dog\n")
    command = ["prepare", "own", str(tmp_path / "captions.tsv"), "--out", str(tmp_path / "out"), "--images"]
    assert main([*command, str(tmp_path)]) == 2
    assert "own: none of 1 entries can be used (no image file 1); files are looked for below" in (
        capsys.readouterr().err
    )
    assert main([*command, str(tmp_path / "photos")]) == 0
    assert "1 samples from 1 entries" in capsys.readouterr().out
    assert "of column 'file_name' and captions those of 'caption'; text: only in the .json" in caplog.text


def test_json_lines_may_list_captions(tmp_path):
    rows = [
        {"file_name": "a.jpg", "text": ["one", " two ", ""], "width": 5},
        {"file_name": "b.jpg", "text": " "},
    ]
    (tmp_path / "metadata.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, rows)))
    empty, first, second = read([tmp_path / "metadata.jsonl"])
    assert empty == Dropped(NO_CAPTION, "a.jpg"), "also one beside others is counted"
    assert (first.captions, first.images, second) == (
        ("one", "two"),
        ("a.jpg",),
        Dropped(NO_CAPTION, "b.jpg"),
    )
    assert first.record == {"file": "a.jpg", "width": 5}


def test_a_table_with_commas_may_have_a_tab_in_a_further_column_s_name(tmp_path):
    (tmp_path / "a.csv").write_text("file_name,caption,my\tnote\na.jpg,a dog,new\n")
    (entry,) = read([tmp_path / "a.csv"])
    assert entry.record == {"file": "a.jpg", "my\tnote": "new"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "picture,caption\nx,y\n", "has the columns picture, caption; it needs one of file_name"),
        ("a.csv", "file_name\nx\n", "one of caption, text, title; pictures without captions are for"),
        ("a.csv", "filepath\ttitle\nx\ta, b\n", "has tabs between its columns; rename it to .tsv"),
        ("a.csv", "filepath;title\nx;a, b\n", "has semicolons between its columns; save it with commas"),
        ("a.csv", "file_name,caption\nx,a dog, asleep\n", "line 2: not one value for each of the 2 columns"),
        ("a.tsv", "file_name\tcaption\nx\n", "line 2: not one value for each"),
        ("a.csv", 'file_name,caption\nx,"a dog\n', "line [12]: unexpected end of data"),
        ("a.csv", "file_name,caption\nx,caf\udce9\n", "a.csv', line 2: not UTF-8: byte 0xe9 after .*x,caf"),
        ("a.jsonl", '{"file": "x", "text": "caf\udce9"}', "a.jsonl', line 1: not UTF-8: byte 0xe9"),
        ("a.parquet", "", "is no table; give a .csv, .tsv or .jsonl"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=words):
        list(read([tmp_path / name]))
