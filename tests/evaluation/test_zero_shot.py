"""A model that knows colours tells them by their names; one that confuses two pays for exactly these."""

import json

import pytest
import torch
from evaluation.color_world import COLORS, KnowsColors, color_model, write_image_folder

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.runner import find_data
from flava_ds.evaluation.zero_shot import ZeroShot, classifier


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_image_folder(root, {"test": 4})
    (root / "test" / "green" / "3.png").unlink()
    return find_data(ImageFolder(), root)


TASK = ZeroShot("colors", ImageFolder())


def test_a_model_that_knows_is_right(data):
    scores = TASK.run(color_model(), data)
    assert set(scores) == {"top1_accuracy", "mean_per_class_accuracy"}  # three classes have no top-5
    assert scores["top1_accuracy"].value == 1 and scores["top1_accuracy"].n == 11


def test_confusing_a_class_costs_its_samples(data):
    scores = TASK.run(color_model(KnowsColors({"green": "red"})), data)
    assert scores["top1_accuracy"].value == pytest.approx(8 / 11)
    assert scores["mean_per_class_accuracy"].value == pytest.approx(2 / 3)


def test_a_class_without_a_name_stops_prompts_and_nothing_else(tmp_path):
    write_image_folder(tmp_path, {"test": 1, "train": 2})
    (tmp_path / "classes.json").write_text(json.dumps({"blue": "blue", "green": "green"}))
    found = find_data(ImageFolder(), tmp_path)
    with pytest.raises(DataError, match="classes.json: has no name for class 'red'"):
        TASK.run(color_model(), found)
    assert Neighbours("colors", ImageFolder()).run(color_model(), found)["top1_accuracy"].value == 1


def test_a_classifier_is_the_renormalised_mean_over_templates():
    model = color_model()
    templates = ("a {} one", "{}", "red {or} 50 % { of {}")
    found = classifier(model, COLORS, templates, "a test")
    prompts = model.text_embeddings([template.replace("{}", "green") for template in templates], "a test")
    torch.testing.assert_close(found[COLORS.index("green")], prompts.mean(0) / prompts.mean(0).norm())
    assert prompts[0].argmax() == COLORS.index("green") and len(found) == 3
