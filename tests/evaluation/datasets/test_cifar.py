"""The published pickles are read, of Python 2 and 3, and nothing that they might want to run is run."""

import os
import pickle

import numpy as np
import pytest
import torch
from evaluation.color_world import COLORS, pixels_of, python2_pickle, write_cifar10

from flava_ds.errors import DataError
from flava_ds.evaluation.tasks.cifar10 import DATA


@pytest.mark.parametrize("python2", [True, False])
def test_pixels_labels_and_names(tmp_path, python2):
    folder = write_cifar10(tmp_path, python2=python2)
    samples = DATA.read(folder, "test")
    assert samples.class_names == COLORS and samples.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(DATA.read(folder, "train")) == 30 and samples.keys[1] == "test_batch/1"
    image = samples.load(4)
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert image[:, 0, 0].tolist() == pixels_of("green", 4)[0, 0].tolist()
    assert all("{}" in template for template in samples.templates)


def test_rows_are_red_then_green_then_blue_line_by_line(tmp_path):
    folder = write_cifar10(tmp_path)
    flat = np.arange(3072, dtype=np.int64).astype(np.uint8)[None]
    (folder / "test_batch").write_bytes(python2_pickle({"data": flat, "labels": [0]}))
    image = DATA.read(folder, "test").load(0).numpy()
    assert image[0, 0, :4].tolist() == [0, 1, 2, 3] and image[0, 1, 0] == 32 and image[1, 0, 0] == 1024 % 256


class Runs:
    def __reduce__(self):
        return os.system, ("true",)


def test_a_pickle_that_calls_something_is_refused(tmp_path):
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": Runs()}))
    with pytest.raises(
        DataError, match=r"test_batch: not a pickle of arrays \(it wants to call posix.system\)"
    ):
        DATA.read(folder, "test")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"\x80\x02not", "not a pickle"),
        (pickle.dumps([1]), "holds list"),
        (pickle.dumps({b"labels": [0]}), "has no 'data'"),
        (python2_pickle({"data": np.zeros((2, 10), np.uint8), "labels": [0, 1]}), "'data' is not"),
        (python2_pickle({"data": np.zeros((1, 3072), np.uint8), "labels": [3]}), "label outside 0 to 2"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, words):
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=f"test_batch: .*{words}"):
        DATA.read(folder, "test")


def test_a_missing_file_is_no_data_set(tmp_path):
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_3").unlink()
    assert DATA.is_here(folder) and not DATA.is_here(folder, "train")
    (folder / "batches.meta").unlink()
    with pytest.raises(DataError, match="batches.meta is missing"):
        DATA.read(folder, "test")
