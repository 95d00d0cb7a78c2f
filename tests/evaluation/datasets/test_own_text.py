"""Texts of one's own: classes of all splits, one text or two."""

import pytest

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.own_text import OwnText

DATA = OwnText()


def test_classes_are_those_of_every_split(tmp_path):
    (tmp_path / "train.tsv").write_text("label\ttext\nsad\tno\nglad\tyes\n")
    (tmp_path / "test.tsv").write_text("text\tlabel\nwell\tso so\n")
    samples = DATA.read(tmp_path, "test")
    assert samples.class_names == ("glad", "sad", "so so") and samples.labels.tolist() == [2]
    assert samples.second is None and DATA.read(tmp_path, "train").labels.tolist() == [1, 0]


def test_two_texts(tmp_path):
    (tmp_path / "test.tsv").write_text("text\tsecond\tlabel\na\tb\tx\n")
    samples = DATA.read(tmp_path, "test")
    assert samples.texts == ("a",) and samples.second == ("b",)
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tx\n")
    with pytest.raises(DataError, match="train.tsv: has no column 'second', which another split has"):
        DATA.read(tmp_path, "test")


@pytest.mark.parametrize(
    "content, words",
    [
        ("words\tlabel\na\tb\n", "its first line names words, label; expected"),
        ("text\tlabel\na\n", "line 2 has 1 columns instead of 2, read without quoting; mend the line"),
        ("text\tlabel\na\tb\nc\t \n", "line 3 has no label; write one, or take the line out"),
    ],
)
def test_another_layout_is_named(tmp_path, content, words):
    (tmp_path / "test.tsv").write_text(content)
    with pytest.raises(DataError, match=f"test.tsv: {words}"):
        DATA.read(tmp_path, "test")
