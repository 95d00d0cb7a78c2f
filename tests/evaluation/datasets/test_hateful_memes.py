"""Hateful Memes' files: letters, classes and pictures; a split without labels is named."""

import json

import pytest
from evaluation.language_world import write_hateful_memes

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.hateful_memes import HatefulMemes
from flava_ds.evaluation.runner import find_data
from flava_ds.evaluation.tasks.hateful_memes import TASKS

DATA = HatefulMemes()


def test_memes(tmp_path):
    write_hateful_memes(tmp_path)
    found = find_data(DATA, tmp_path)
    assert found.split == "test_seen"  # the unseen ones are not there
    samples = found.test()
    assert samples.texts[0] == 'a "apple of moon' and samples.labels.tolist() == [0, 1] * 5
    assert samples.load(3)[:4] == b"\x89PNG" and samples.class_names == ("not hateful", "hateful")


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"id": 1, "img": "img/00001.png", "text": "x"}', "test_seen.jsonl: line 1 has no 'label'"),
        ('{"id": 1, "img": "img/00001.png", "text": "x", "label": 2}', "label is 2, neither 0 nor 1"),
        ('{"id": 1, "img": "img/9.png", "text": "x", "label": 0}', "1 pictures, 9.png among them"),
    ],
)
def test_what_cannot_be_scored_is_named(tmp_path, line, words):
    write_hateful_memes(tmp_path)
    (tmp_path / "hateful_memes" / "test_seen.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=words):
        DATA.read(tmp_path / "hateful_memes", "test_seen")


def test_mirrors_without_the_unseen_pictures(tmp_path):
    write_hateful_memes(tmp_path)
    folder, meme = tmp_path / "hateful_memes", {"id": 9, "img": "img/99.png", "label": 0, "text": "x"}
    for split in ("dev_unseen", "test_unseen"):
        (folder / f"{split}.jsonl").write_text(json.dumps(meme) + "\n")
    found = find_data(DATA, tmp_path)
    with pytest.raises(DataError, match=r"99.png among them.*--split test_seen reports"):
        found.test()
    assert TASKS[0].settings(find_data(DATA, tmp_path, "test_seen"))["chosen_on"] == "dev_seen"
