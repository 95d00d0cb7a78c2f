"""Drawings with their groups, which mean the same in every split."""

import json

import numpy as np
from sample_runs import pair

from flava_ds.demo.shards import write_shards
from flava_ds.evaluation.datasets.drawings import Drawings
from flava_ds.evaluation.runner import find_data


def test_classes_come_from_all_splits_and_pictures_from_their_own(tmp_path):
    samples = [pair(n, "noto") for n in range(6)]
    for folder, chosen in (("pairs-train", samples[:4]), ("pairs-unseen-style", samples[4:])):
        write_shards(tmp_path / "demo_data" / folder, chosen, 3)
    data = find_data(Drawings(), tmp_path)
    groups = [json.loads(sample["json"])["group"] for sample in samples]
    test, train = data.test(), data.read("train")
    for found, expected in ((train, groups[:4]), (test, groups[4:])):
        assert [found.class_names[label] for label in found.labels] == expected
    assert test.class_names == train.class_names == tuple(sorted(set(groups)))
    assert test.load(1) == data.data.read(tmp_path / "demo_data", "unseen_style").load(1) != train.load(1)
    assert train.labels.dtype == np.int64
