"""The committed detector: made by today's settings, and as good as its record says."""

import dataclasses
import json

import pytest
import torch

from flava_ds.demo import detector as demo_detector
from flava_ds.demo.dataset import unpack
from flava_ds.demo.scenes import draw_scene, read_drawings
from flava_ds.errors import CheckpointError
from flava_ds.regions.detector import NAMED, load_detector


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(NAMED["demo"].with_suffix(".json").read_text(encoding="utf-8"))


def test_it_was_made_by_the_settings_that_train_one_today(record):
    detector = load_detector("demo")
    assert record["training"] == json.loads(json.dumps(dataclasses.asdict(demo_detector.TRAINING)))
    assert record["detector"] == json.loads(json.dumps(dataclasses.asdict(detector.config)))
    assert record["curve"][-1]["step"] == demo_detector.TRAINING.total_steps
    assert NAMED["demo"].stat().st_size < 2e6
    concepts = json.loads((unpack() / "concepts.json").read_text(encoding="utf-8"))
    assert set(detector.class_names) == {entry["subgroup"] for entry in concepts if entry["seen"]}


def test_it_is_as_good_on_concepts_never_seen_as_its_record_says(record):
    drawings = read_drawings(unpack(), "unseen_concepts")
    found = demo_detector.judged(load_detector("demo"), drawings, 100)
    expected = record["quality"]["unseen_concepts, scenes"]
    assert found["ap50_places"] == pytest.approx(expected["ap50_places"], abs=0.06) and found["ap50"] > 0.06


def test_a_step_s_pictures_are_its_own_and_have_their_boxes():
    drawings = read_drawings(unpack(), "unseen_concepts")
    names = tuple(sorted(set(drawings.subgroups)))
    first, again, second = (demo_detector.training_batch(drawings, names, 0, step, 8) for step in (3, 3, 4))
    assert torch.equal(first.pixels, again.pixels) and not torch.equal(first.pixels, second.pixels)
    counts = torch.bincount(first.images, minlength=8)
    assert (counts[:6] >= 3).all() and (counts[6:] == 1).all()
    scenes = [draw_scene(drawings, 0, 18 + number, **demo_detector.CROWDED) for number in range(6)]
    boxes = [box for scene in scenes for box in scene.boxes]
    torch.testing.assert_close(96 * first.boxes[: len(boxes)], torch.tensor(boxes).float())
    labels = [names[label] for label in first.labels[: len(boxes)]]
    assert labels == [drawings.subgroups[row] for scene in scenes for row in scene.rows]


def test_a_file_is_not_overwritten(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    for name in ("a.safetensors", "b.bin"):
        with pytest.raises(CheckpointError, match="give a new file whose name ends in .safetensors"):
            demo_detector.train(unpack(), tmp_path / name)
