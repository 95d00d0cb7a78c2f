"""The published TSV: no quoting, one header line, and a line of another layout is named."""

import pytest
from evaluation.color_world import write_sst2

from flava_ds.errors import DataError
from flava_ds.evaluation.tasks.sst2 import DATA


def test_sentences_and_labels(tmp_path):
    folder = write_sst2(tmp_path, {"dev": 5})
    samples = DATA.read(folder, "dev")
    assert samples.texts[:2] == ('a "blue one', 'a "red one') and samples.labels.tolist() == [0, 1, 0, 1, 0]
    assert samples.class_names == ("negative", "positive")
    assert DATA.is_here(folder) and not DATA.is_here(folder, "train")


def test_columns_go_by_their_names(tmp_path):
    (tmp_path / "dev.tsv").write_text("label\tsentence\r\n1\tgood\r\n")
    assert DATA.read(tmp_path, "dev").texts == ("good",)


@pytest.mark.parametrize(
    "content, words",
    [
        ("index\tsentence\n0\tx\n", "its first line names index, sentence"),
        ("sentence\tlabel\nx\t1\ny\n", "line 3 has 1 columns"),
        ("sentence\tlabel\nx\t2\n", "line 2 has 2 columns, or no label of 0 to 1"),
        ("sentence\tlabel\nx\t-1\n", "line 2"),
    ],
)
def test_another_layout_is_named(tmp_path, content, words):
    (tmp_path / "dev.tsv").write_text(content)
    with pytest.raises(DataError, match=f"dev.tsv: {words}"):
        DATA.read(tmp_path, "dev")
