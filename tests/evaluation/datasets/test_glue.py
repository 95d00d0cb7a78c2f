"""The published TSV of GLUE: no quoting, the traps of each set, and a line of another layout is named."""

import pytest
from evaluation.language_world import WRITERS, write_cola, write_tsv

from flava_ds.errors import DataError
from flava_ds.evaluation.registry import tasks

CASES = {
    "glue_cola": ([0, 1], None),
    "glue_sst2": ([0, 1], None),
    "glue_mrpc": ([0, 1], "the moon"),
    "glue_qqp": ([0, 1], "the kite"),
    "glue_stsb": ([0, 2.5, 5], "the moon"),
    "glue_mnli": ([0, 1, 2], "the moon"),
    "glue_qnli": ([0, 1], "the moon grows"),
    "glue_rte": ([0, 1], "the moon grows"),
}


@pytest.mark.parametrize("name", CASES)
def test_texts_and_labels_as_published(tmp_path, name):
    WRITERS[name](tmp_path)
    data, (labels, first) = tasks()[name].data, CASES[name]
    for split in data.splits:
        samples = data.read(tmp_path / data.folder, split)
        assert samples.labels[: len(labels)].tolist() == labels
        said = samples.texts if first is None else samples.second
        assert said[:2] == ('a "apple of moon', 'a "bear of moon')
        assert first is None or set(samples.texts) == {first}
        assert len(samples) % len(labels) == 0, "no line too many"
    assert samples.class_names == data.class_names or samples.class_names == data.labels


def test_columns_go_by_their_names_and_windows_ends_lines_otherwise(tmp_path):
    (tmp_path / "dev.tsv").write_bytes(b"label\tsentence\r\n1\tgood\r\n")
    assert tasks()["glue_sst2"].data.read(tmp_path, "dev").texts == ("good",)


@pytest.mark.parametrize(
    "task, content, words",
    [
        ("glue_sst2", "sentence\tlabel\nx\t1\ny\n", "line 3 has 1 columns instead of 2"),
        ("glue_sst2", "sentence\tlabel\nx\t2\n", "line 2 has the label '2'; known are 0, 1"),
        ("glue_sst2", "index\tsentence\n0\tx\n", "but not label; a test.tsv is published without labels"),
        ("glue_rte", "index\tsentence1\tlabel\n", "but not sentence2; download the set again"),
        ("glue_mnli", "sentence1\tsentence2\tgold_label\na\tb\t-\n", "line 2 has the label '-'"),
        (
            "glue_stsb",
            "sentence1\tsentence2\tscore\na\tb\t5.5\n",
            "label '5.5'; known are a number from 0 to 5",
        ),
        ("glue_cola", "sentence\tlabel\nx\t1\n", "line 1 has 2 columns instead of 4"),
    ],
)
def test_another_layout_is_named(tmp_path, task, content, words):
    data = tasks()[task].data
    (tmp_path / f"{data.splits[0]}.tsv").write_text(content)
    with pytest.raises(DataError, match=rf"{data.splits[0]}.tsv: .*{words}"):
        data.read(tmp_path, data.splits[0])


def test_a_file_of_another_task_is_no_cola(tmp_path):
    write_cola(tmp_path)
    write_tsv(tmp_path / "CoLA" / "dev.tsv", None, [["index", "a", "b", "c"]])
    with pytest.raises(DataError, match="line 1 has the label 'a'; known are 0, 1"):
        tasks()["glue_cola"].data.read(tmp_path / "CoLA", "dev")
