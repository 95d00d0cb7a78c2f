"""Shards of labelled scenes: their labels are those of the scenes, and a seed decides them."""

import dataclasses

import numpy as np
import pytest
import torch

from flava_ds.demo.dataset import unpack
from flava_ds.demo.scene_shards import TASKS, objects_of, subgroups, write_scenes
from flava_ds.demo.scene_texts import ANSWERS, FITS, ask, state
from flava_ds.demo.scenes import draw_scene, paint, read_drawings
from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.scenes import SceneObjects
from flava_ds.recipes import RECIPES
from flava_ds.recipes import demo_unit as recipe
from flava_ds.regions.detector import load_detector

SPLIT, COUNT, SEED = "unseen_style", 6, 5


@pytest.fixture(scope="module")
def root():
    return unpack().root


@pytest.fixture(scope="module")
def written(root, tmp_path_factory):
    return write_scenes(root, tmp_path_factory.mktemp("scenes"), split=SPLIT, samples=COUNT, seed=SEED)


def test_classes_and_answers_are_those_of_detector_and_recipe(root):
    assert subgroups(root) == load_detector("demo").class_names
    assert (recipe.CLASSES, recipe.ANSWERS, recipe.FITS) == (len(subgroups(root)), len(ANSWERS), len(FITS))


def test_a_run_reads_the_scenes_with_their_labels(root, written):
    """Every sample through the loader of the demo's recipe, against the scene composed again."""
    from flava_ds.data.reader import BatchReader
    from flava_ds.data.sources import open_source

    drawings, config = read_drawings(root, SPLIT), RECIPES["demo_unit"]()
    for number, (task, folder) in enumerate(zip(TASKS, written, strict=True)):
        plain = dataclasses.replace(config.data.sources[task].transform, color_jitter=0, grayscale=0, edges=0)
        source = dataclasses.replace(config.data.sources[task], shards=str(folder), transform=plain)
        own = config.with_sources({task: source})
        reader = BatchReader(own, open_source(own, task))
        batch = reader.batch(np.arange(COUNT))
        assert sorted(batch.keys) == [f"{number * COUNT + row:08d}" for row in range(COUNT)]
        bounds = batch["target_cu_seqlens"].tolist()
        for row, key in enumerate(batch.keys):
            scene, name = draw_scene(drawings, SEED, int(key)), f"{SPLIT} {SEED} {int(key)}"
            assert torch.equal(batch["pixel_values"][row], paint(drawings, scene))
            labels = batch["target_labels"][bounds[row] : bounds[row + 1]].tolist()
            if task == "detection":
                boxes, expected = objects_of(drawings, scene, subgroups(root))
                assert labels == expected.tolist()
                assert np.array_equal(batch["target_boxes"][bounds[row] : bounds[row + 1]].numpy(), boxes)
            else:
                said = (ask if task == "question" else state)(drawings, scene, name, int(key))
                answer = ANSWERS.index(said.answer) if task == "question" else FITS.index(said.fit)
                assert labels == [answer]
                begin, end = batch["cu_seqlens"][row : row + 2].tolist()
                ids = reader.plan.tokenizer.encode_batch([said.text], 32)[0]
                assert batch["input_ids"][begin:end].tolist() == ids.tolist()


def test_folders_are_never_written_twice(root, written):
    with pytest.raises(DataError, match="'.*detection' is there already; delete it"):
        write_scenes(root, written[0].parent, split=SPLIT, samples=1)


def test_evaluated_objects_are_those_of_the_evaluated_scenes(root):
    found = SceneObjects().read(root, SPLIT).select(np.array([3, 0]))
    drawings = read_drawings(root, SPLIT)
    scene = draw_scene(drawings, 0, 3)
    boxes, labels = objects_of(drawings, scene, subgroups(root))
    assert np.array_equal(found.boxes[0], boxes) and np.array_equal(found.labels[0], labels)
    assert torch.equal(found.load(0), paint(drawings, scene)) and len(found) == 2
    assert [found.class_names[label] for label in labels] == [drawings.subgroups[row] for row in scene.rows]
