"""VQA v2's files: answers counted over both parts, pictures by COCO's names, and what is not there named."""

import json

import pytest
from evaluation.language_world import write_vqav2

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.vqav2 import VqaV2

DATA = VqaV2()


def test_questions_pictures_and_frequent_answers(tmp_path):
    """Each answer is the commonest of eleven questions, eight of them in train."""
    write_vqav2(tmp_path)
    samples = DATA.read(tmp_path / "vqav2", "val")
    assert samples.class_names == ("2", "don't know", "red") and samples.labels.tolist()[:3] == [2, 0, 1]
    assert samples.keys[0] == "250" and samples.load(0)[:4] == b"\x89PNG" and len(samples.answers[0]) == 10
    assert samples.select([4]).answers == (samples.answers[4],) and samples.select([4]).places["red"] == 2
    assert DATA.read(tmp_path / "vqav2", "train").class_names == samples.class_names


def test_pictures_may_lie_with_coco(tmp_path):
    write_vqav2(tmp_path)
    (tmp_path / "coco").mkdir()
    (tmp_path / "vqav2" / "val2014").rename(tmp_path / "coco" / "val2014")
    assert len(DATA.read(tmp_path / "vqav2", "val")) == 9


@pytest.mark.parametrize(
    "broken, words",
    [
        ("picture", "1 pictures, COCO_val2014_000000000025.jpg among them, are not in .*by hand"),
        ("answers", "v2_mscoco_val2014_annotations.json: has no answers to question 250"),
        ("part", "train2014_annotations.json: is missing, and the answers are counted over train and val"),
        ("layout", r"not an object with questions\[\] of question_id, image_id, question"),
        ("rare", "no answer is frequent enough"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, broken, words):
    write_vqav2(tmp_path)
    folder = tmp_path / "vqav2"
    annotations = folder / "v2_mscoco_val2014_annotations.json"
    if broken == "picture":
        (folder / "val2014" / "COCO_val2014_000000000025.jpg").unlink()
    elif broken == "answers":
        rest = json.loads(annotations.read_text())["annotations"][1:]
        annotations.write_text(json.dumps({"annotations": rest}))
    elif broken == "part":
        (folder / "v2_mscoco_train2014_annotations.json").unlink()
    elif broken == "layout":
        (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text('{"questions": [{"image_id": 1}]}')
    else:
        (folder / "v2_mscoco_train2014_annotations.json").write_text('{"annotations": []}')
    with pytest.raises(DataError, match=words):
        DATA.read(folder, "val")
