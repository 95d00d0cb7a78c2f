"""Votes by hand, and the whole task on colours."""

import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from evaluation.color_world import KnowsColors, color_model, write_image_folder

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.neighbours import Neighbours, vote
from flava_ds.evaluation.runner import find_data


def test_votes_are_weighted_by_similarity():
    """Two far neighbours of class 0 against one near neighbour of class 1: similarity decides,
    not the count."""
    keys = F.normalize(torch.tensor([[1.0, 0.9], [0.9, 1.0], [1.0, 0.0], [-1.0, 0.0]]), dim=1)
    labels = torch.tensor([0, 0, 1, 2])
    near, between = torch.tensor([[1.0, 0.0]]), F.normalize(torch.tensor([[1.0, 0.8]]), dim=1)
    weight = [math.exp(float(near @ key) / 0.07) for key in keys]
    assert weight[0] + weight[1] < weight[2]
    assert vote(near, keys, labels, 3, 3).tolist() == [1] and vote(between, keys, labels, 3, 3).tolist() == [
        0
    ]
    assert vote(near, keys, labels, 100, 3).tolist() == [1]  # fewer training samples than k


def test_votes_are_those_of_counting():
    draw = torch.Generator().manual_seed(0)
    queries, keys = (F.normalize(torch.randn(count, 6, generator=draw), dim=1) for count in (50, 80))
    labels = torch.randint(0, 4, (80,), generator=draw)
    whole = vote(queries, keys, labels, 20, 4)
    similarity = queries @ keys.T
    for row in range(50):
        best = similarity[row].argsort(descending=True)[:20]
        votes = [
            sum(math.exp(float(similarity[row, key]) / 0.07) for key in best if labels[key] == c)
            for c in range(4)
        ]
        assert whole[row] == votes.index(max(votes))


def test_colours_have_their_like_as_neighbours(tmp_path):
    data = find_data(ImageFolder(), write_image_folder(tmp_path, {"train": 8, "test": 4}))
    task = Neighbours("colors", ImageFolder(), k=5)
    assert task.run(color_model(), data)["top1_accuracy"].value == 1
    mixed = task.run(color_model(KnowsColors({"green": "red"})), data)["top1_accuracy"]
    assert mixed.value == pytest.approx(2 / 3, abs=0.1) and mixed.n == 12


def test_a_class_without_training_images_is_named(tmp_path):
    root = write_image_folder(tmp_path, {"train": 2, "test": 1})
    shutil.rmtree(root / "train" / "green")
    with pytest.raises(DataError, match="the training split has no sample of class 'green'"):
        Neighbours("colors", ImageFolder(), k=5).run(color_model(), find_data(ImageFolder(), root))
