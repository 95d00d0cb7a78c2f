"""A probe reads what is linearly there, uses the validation split where there is one, and tests once."""

import pytest
import torch
from evaluation.color_world import KnowsColors, color_model, write_image_folder, write_sst2

from flava_ds.errors import DataError
from flava_ds.evaluation import probe as probes
from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.datasets.own_text import OwnText
from flava_ds.evaluation.logistic import one_by_one
from flava_ds.evaluation.probe import ImageProbe, TextProbe
from flava_ds.evaluation.runner import find_data
from flava_ds.evaluation.tasks.glue import SST2

TASK = ImageProbe("colors", ImageFolder())


@pytest.fixture
def chosen_on(monkeypatch):
    """Notes what each penalty was chosen and each probe fitted on."""
    seen = {"chosen": [], "fitted": []}
    choose = probes.choose_penalty

    def note_choice(solver, train, validation):
        seen["chosen"].append((len(train[1]), len(validation[1])))
        return choose(solver, train, validation)

    def note_fit(features, labels, penalties):
        if len(penalties) == 1:
            seen["fitted"].append(len(labels))
        return one_by_one(features, labels, penalties)

    monkeypatch.setattr(probes, "choose_penalty", note_choice)
    monkeypatch.setattr(probes, "solver_for", lambda features: note_fit)
    return seen


def test_colours_are_read(tmp_path, chosen_on):
    data = find_data(ImageFolder(), write_image_folder(tmp_path, {"train": 10, "test": 4}))
    scores = TASK.run(color_model(), data)
    assert (
        scores["accuracy"].value == 1 == scores["mean_per_class_accuracy"].value and "roc_area" not in scores
    )
    assert chosen_on == {"chosen": [(24, 6)], "fitted": [30]}  # a fifth of each class, then all of it


def test_a_validation_split_chooses_the_penalty_and_joins_the_fit(tmp_path, chosen_on):
    root = write_image_folder(tmp_path, {"train": 10, "val": 5, "test": 4})
    TASK.run(color_model(), find_data(ImageFolder(), root))
    TASK.run(color_model(), find_data(ImageFolder(), root, "val"))  # reported on, so it chooses nothing
    assert chosen_on == {"chosen": [(30, 15), (24, 6)], "fitted": [45, 30]}


def test_classes_that_look_alike_are_not_told_apart(tmp_path):
    data = find_data(ImageFolder(), write_image_folder(tmp_path, {"train": 10, "test": 6}))
    score = TASK.run(color_model(KnowsColors({"green": "red"})), data)["accuracy"]
    assert 1 / 3 <= score.value < 1 and score.standard_error > 0


def test_sentences_have_the_area_under_the_curve_too(tmp_path):
    write_sst2(tmp_path, {"train": 40, "dev": 12})
    scores = TextProbe("s", SST2).run(color_model(), find_data(SST2, tmp_path))
    assert scores["accuracy"].value == 1 == scores["roc_area"].value and scores["roc_area"].n == 12


def test_pairs_of_texts_are_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.tsv").write_text("text\tsecond\tlabel\nred\tblue\tx\nred\tred\ty\n")
    with pytest.raises(DataError, match="task s: own_text has pairs of texts, and a probe reads one"):
        TextProbe("s", OwnText()).run(color_model(), find_data(OwnText(), tmp_path))


def test_of_features_that_say_nothing_half_is_right(tmp_path):
    class Blind:
        def text_features(self, texts):
            return torch.zeros(len(texts), 4)

    write_sst2(tmp_path, {"train": 40, "dev": 12})
    scores = TextProbe("s", SST2).run(color_model(Blind()), find_data(SST2, tmp_path))
    assert scores["accuracy"].value == 0.5 == scores["roc_area"].value


def test_a_training_split_of_one_class_is_named(tmp_path):
    write_sst2(tmp_path, {"train": 1, "dev": 12})
    with pytest.raises(DataError, match="split 'train' has samples of only one class"):
        TextProbe("s", SST2).run(color_model(), find_data(SST2, tmp_path))
    with pytest.raises(DataError, match="task s: learns from split 'train', so a report on it says nothing"):
        TextProbe("s", SST2).run(color_model(), find_data(SST2, tmp_path, "train"))
