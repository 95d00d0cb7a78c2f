"""What goes wrong in a task of one's own is one line that names it, and the tasks behind it run."""

import dataclasses

import numpy as np
import pytest
import torch
from evaluation.color_world import color_model, write_image_folder

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.protocols import ImageFeatures, Score
from flava_ds.evaluation.runner import find_all
from flava_ds.evaluation.task_scores import scores_of


def fails():
    return 1 / 0


LINE = fails.__code__.co_firstlineno + 1
RESULTS = {
    "nothing": (lambda: None, "task mine returned NoneType; a task returns {name: Score}"),
    "no number": (dict, "task mine returned {}; a task"),
    "list": (lambda: [Score(0.5, 3, None)], "task mine returned list; a task"),
    "float": (lambda: {"a": 0.5}, "task mine, number 'a' is float; return a flava_ds.evaluation.prot"),
    "unit": (
        lambda: {"a": Score(0.5, 3, None, unit="metres")},
        "'a' has the unit 'metres'; there are share,",
    ),
    "vector": (lambda: {"a": Score(torch.ones(2), 3, None)}, "'a' is no score of single numbers: "),
    "raises": (
        fails,
        f"task mine failed: {__file__}:{LINE}: ZeroDivisionError: division by zero",
    ),
}


@dataclasses.dataclass(frozen=True)
class Mine:
    make: object
    name: str = "mine"
    about: str = "mine"
    needs: tuple = (ImageFeatures,)
    data: ImageFolder = ImageFolder()

    def run(self, model, data):
        return self.make()


@pytest.mark.parametrize("what", RESULTS)
def test_a_mistake_is_told_with_the_task(what):
    make, message = RESULTS[what]
    with pytest.raises(DataError) as caught:
        scores_of(Mine(make), None, None)
    assert message in str(caught.value)


def test_numbers_of_numpy_and_torch_are_plain():
    given = Score(np.float32(0.5), np.int64(3), torch.tensor(0.25), interval=np.array([0.25, 0.75]))
    found = scores_of(Mine(lambda: {"a": given}), None, None)["a"]
    assert found == Score(0.5, 3, 0.25, interval=(0.25, 0.75))
    assert all(type(own) in (int, float, str, bool, tuple) for own in dataclasses.astuple(found))


def test_errors_of_our_own_code_keep_their_kind(tmp_path):
    """A bug of ours, or a rank that is gone, is no mistake in a task."""
    write_image_folder(tmp_path, {"test": 1})
    from flava_ds.evaluation.registry import find

    (task,) = find(["image_folder_zero_shot"])
    data = find_all([task], tmp_path)[task.name]
    with pytest.raises(AttributeError):
        scores_of(task, None, data)
    assert scores_of(task, color_model(), data)["top1_accuracy"].value == 1
