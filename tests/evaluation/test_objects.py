"""Average precision of what a model finds: one that knows is right, and what errors cost."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation.color_world import color_model

from flava_ds.evaluation.datasets.scenes import SceneObjects
from flava_ds.evaluation.frozen_model import Lacking
from flava_ds.evaluation.labelled import LabelledObjects
from flava_ds.evaluation.objects import AveragePrecision

TASK, NAMES = AveragePrecision("objects", SceneObjects()), ("round", "flat")
PLACES = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], dtype=np.float32)


def samples(labels) -> LabelledObjects:
    """A picture for each tuple of labels; its grey level is its number."""
    return LabelledObjects(
        name="toys",
        keys=tuple(str(row) for row in range(len(labels))),
        load=lambda row: torch.full((3, 8, 8), row, dtype=torch.uint8),
        boxes=tuple(PLACES[: len(own)] for own in labels),
        labels=tuple(np.array(own, dtype=np.int64) for own in labels),
        class_names=NAMES,
    )


class Finds:
    """Says what `told` says of a picture: a label and a score for each place."""

    def __init__(self, told, num_classes: int = 2) -> None:
        self.told, self.num_classes = told, num_classes

    def find_objects(self, pixels):
        classes = torch.zeros(len(pixels), 2, self.num_classes)
        for row, number in enumerate(pixels[:, 0, 0, 0].tolist()):
            for place, (label, score) in enumerate(self.told[number]):
                classes[row, place, label] = score
        return torch.from_numpy(PLACES).expand(len(pixels), -1, -1), classes


def measure(told, labels, **how):
    return TASK.run(color_model(Finds(told, **how)), SimpleNamespace(test=lambda: samples(labels)))


def test_a_model_that_knows_is_right_and_errors_cost_their_class():
    labels = [(0, 1), (1,), (0, 0)] * 50  # more than one batch of pictures
    sure, unsure = 0.9, 0.1
    knows = [[(label, sure) for label in own] + [(0, 0.0)] * (2 - len(own)) for own in labels]
    scores = measure(knows, labels)
    assert {name: score.value for name, score in scores.items()} == {"ap50": 1, "ap50_places": 1}
    assert scores["ap50"].n == 150
    confuses = [[(1 - label, unsure) if own == (1,) else (label, sure) for label in own] for own in labels]
    confuses = [own + [(0, 0.0)] * (2 - len(own)) for own in confuses]
    scores = measure(confuses, labels)
    # "flat" is found in one half of the pictures that have it; the wrong "round" comes after all right ones
    assert scores["ap50"].value == pytest.approx((1 + 0.5) / 2)
    assert scores["ap50_places"].value == 1


def test_classes_without_a_name_count_as_places_alone():
    scores = measure([[(0, 0.9), (1, 0.8)]], [(0, -1)])
    assert scores["ap50"].value == 1 and scores["ap50_places"].value == 1


def test_a_model_of_other_classes_lacks_the_task():
    with pytest.raises(Lacking, match="colors tells 3 classes of objects, but toys has 2"):
        measure([[(0, 0.9)]], [(0,)], num_classes=3)
    with pytest.raises(Lacking, match=r"needs ObjectFinder \(boxes of objects\), which .* does not offer"):
        TASK.run(color_model(), SimpleNamespace(test=lambda: samples([(0,)])))
