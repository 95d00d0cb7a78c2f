"""Scenes as a labelled set: its texts and pictures are the scenes' own, and what guessing by kind scores."""

import collections

import numpy as np
import pytest
import torch

from flava_ds.demo.dataset import unpack
from flava_ds.demo.scene_texts import ANSWERS, FITS, ask, state
from flava_ds.demo.scenes import draw_scene, paint, read_drawings
from flava_ds.errors import DataError
from flava_ds.evaluation.datasets import scenes
from flava_ds.evaluation.runner import find_data
from flava_ds.evaluation.tuning.goals import Classes


@pytest.mark.parametrize("statements", [False, True])
def test_texts_and_pictures_are_those_of_the_scenes(statements, monkeypatch):
    root = unpack()
    monkeypatch.setitem(scenes.COUNTS, "unseen_concepts", 60)
    data = find_data(scenes.Scenes(statements=statements), root, "unseen_concepts")
    found, drawings = data.test(), read_drawings(root, "unseen_concepts")
    assert len(found) == 60 and len(set(found.keys)) == 60
    for row in (0, 7, 58):
        scene = draw_scene(drawings, scenes.SEED, row)
        assert torch.equal(found.load(row), paint(drawings, scene))
        said = (state if statements else ask)(drawings, scene, found.keys[row], row)
        assert found.texts[row] == said.text
        assert found.class_names[found.labels[row]] == (said.fit if statements else said.answer)
    assert found.class_names == (FITS if statements else ANSWERS)
    chosen = found.select(np.array([7, 58]))
    assert (
        torch.equal(chosen.load(1), found.load(58)) and chosen.kinds.tolist() == found.kinds[[7, 58]].tolist()
    )


def test_a_guess_by_kind_scores_what_the_most_frequent_classes_are():
    random = np.random.default_rng(0)
    labels, kinds = random.integers(0, 4, 50), random.integers(0, 3, 50)
    found = scenes.TextsOfScenes("x", ("",) * 50, lambda row: b"", ("",) * 50, labels, ("",) * 4, kinds)
    counts = [collections.Counter(labels[kinds == kind].tolist()).most_common(1)[0][1] for kind in range(3)]
    score = Classes(metrics=("majority",)).scores(np.zeros((50, 4), dtype=np.float32), found)["majority"]
    assert score.value == pytest.approx(sum(counts) / 50)


def test_drawings_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(
        DataError, match="no scene_questions in .* expected pairs-train/, .*; part of the pack"
    ):
        find_data(scenes.Scenes(), tmp_path)
