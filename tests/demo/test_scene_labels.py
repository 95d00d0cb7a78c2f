"""Labels of scenes: those that a run reads are those of the scenes, and classes are the detector's."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from flava_ds.data.reader import BatchReader
from flava_ds.data.sources import open_source
from flava_ds.demo import scene_shards
from flava_ds.demo.dataset import unpack
from flava_ds.demo.scene_labels import labels_of, objects_of, subgroups
from flava_ds.demo.scene_texts import ANSWERS, FITS, ask, state
from flava_ds.demo.scenes import draw_scene, paint, read_drawings
from flava_ds.evaluation.datasets.scenes import SceneObjects
from flava_ds.recipes import RECIPES
from flava_ds.recipes import demo_unit as recipe
from flava_ds.regions.detector import load_detector

SPLIT, COUNT = "unseen_style", 6


@pytest.fixture(scope="module")
def root():
    return unpack()


@pytest.fixture(scope="module")
def written(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "own"
    scene_shards.write_scenes(root, folder, None, split=SPLIT, count=COUNT)
    return folder


def test_classes_and_answers_are_those_of_detector_and_recipe(root):
    assert subgroups(root) == load_detector("demo").class_names
    assert (recipe.CLASSES, recipe.ANSWERS, recipe.FITS) == (len(subgroups(root)), len(ANSWERS), len(FITS))


@pytest.mark.parametrize("task", ["detection", "question", "entailment"])
def test_a_run_reads_the_scenes_with_their_labels(root, written, task):
    """Every sample through the loader of the demo's recipe, against the scene composed again."""
    drawings, config = read_drawings(root, SPLIT), RECIPES["demo_unit"]()
    plain = dataclasses.replace(config.data.sources[task].transform, color_jitter=0, grayscale=0, edges=0)
    source = dataclasses.replace(config.data.sources[task], shards=str(written), transform=plain)
    own = config.with_sources({task: source})
    reader = BatchReader(own, open_source(own, task))
    batch = reader.batch(np.arange(COUNT))
    bounds = batch["target_cu_seqlens"].tolist()
    assert len(set(batch.keys)) == COUNT
    for row, key in enumerate(batch.keys):
        number = int(key.rpartition("_")[2])
        scene = draw_scene(drawings, scene_shards.SEED, number)
        assert torch.equal(batch["pixel_values"][row], paint(drawings, scene))
        labels = batch["target_labels"][bounds[row] : bounds[row + 1]].tolist()
        if task == "detection":
            boxes, expected = objects_of(drawings, scene, subgroups(root))
            assert labels == expected.tolist()
            assert np.array_equal(batch["target_boxes"][bounds[row] : bounds[row + 1]].numpy(), boxes)
            continue
        said = (ask if task == "question" else state)(drawings, scene, key, number)
        assert labels == [ANSWERS.index(said.answer) if task == "question" else FITS.index(said.fit)]
        begin, end = batch["cu_seqlens"][row : row + 2].tolist()
        ids = reader.plan.tokenizer.encode_batch([said.text], 32)[0]
        assert batch["input_ids"][begin:end].tolist() == ids.tolist()


def test_objects_without_a_class_are_no_labels_and_keep_their_boxes_in_evaluations(root):
    drawings = read_drawings(root, SPLIT)
    found = SceneObjects().read(root, SPLIT).select(np.array([3, 0]))
    scene = draw_scene(drawings, 0, 3)
    boxes, labels = objects_of(drawings, scene, subgroups(root))
    assert np.array_equal(found.boxes[0], boxes) and np.array_equal(found.labels[0], labels)
    assert torch.equal(found.load(0), paint(drawings, scene)) and len(found) == 2
    assert [found.class_names[label] for label in labels] == [drawings.subgroups[row] for row in scene.rows]
    names = [drawings.subgroups[scene.rows[0]]]
    boxes, labels = objects_of(drawings, scene, names)
    assert labels.tolist() == [0 if drawings.subgroups[row] == names[0] else -1 for row in scene.rows]
    kept = load(labels_of(drawings, scene, "key", 3, names).members["detection.safetensors"])
    assert np.array_equal(kept["boxes"], boxes[labels == 0]) and set(kept["labels"].tolist()) == {0}
