"""A method by its plain name finds the user's data, however it is laid out."""

import pytest
from evaluation.color_world import write_image_folder, write_own

from flava_ds.errors import DataError, UserError
from flava_ds.evaluation import registry


def names(root, *methods):
    """The tasks that plain names stand for."""
    return [task.name for task in registry.find(methods, root)]


def test_methods_follow_the_layout(tmp_path):
    write_own(tmp_path / "a", {"test": 1, "train": 1})
    write_image_folder(tmp_path / "b" / "image_folder", {"test": 1})
    methods = ("zero_shot", "linear_probe", "neighbours")
    assert names(tmp_path / "a", *methods, "retrieval") == [
        *("own_zero_shot", "own_probe", "own_neighbours", "own_retrieval")
    ]
    assert names(tmp_path / "b", *methods) == [
        *("image_folder_zero_shot", "image_folder_probe", "image_folder_neighbours")
    ]
    assert names(tmp_path / "b", "zero_shot", "cifar10_probe")[1] == "cifar10_probe"


def test_what_is_not_there_is_named_with_its_layout(tmp_path):
    write_image_folder(tmp_path, {"test": 1})
    with pytest.raises(DataError, match="--task retrieval: no data of yours in .*KEY.txt"):
        names(tmp_path, "retrieval")
    with pytest.raises(
        UserError, match=r"no task 'zeroshot' \(did you mean 'zero_shot'\?\); .*own: zero_shot, retr"
    ):
        names(tmp_path, "zeroshot")
