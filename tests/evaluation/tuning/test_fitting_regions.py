"""VQA v2 of a model in Hugging Face's layout that reads regions, those of a published table."""

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.language_world import write_vqav2
from families.family_checks import with_words
from families.two_streams.two_stream_peers import FEATURES, difference, lxmert, randomize

from flava_ds.cli import main
from flava_ds.errors import ConfigError, DataError, UserError
from flava_ds.evaluation.frozen_model import Workplace
from flava_ds.evaluation.opening import freeze, open_model, with_regions
from flava_ds.evaluation.protocols import Matcher
from flava_ds.evaluation.published import TEST_SAMPLES
from flava_ds.evaluation.registry import tasks
from flava_ds.evaluation.runner import find_data
from flava_ds.evaluation.tuning.recipe import Recipe
from flava_ds.families.two_streams.task import build_task
from flava_ds.fine_tuned import FineTuned
from flava_ds.hf.foreign import export

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "kite", "?"]
QUICK = Recipe(samples=24, batch_size=24, lr=5e-3, updates=25, warmup_updates=3, rows_at_once=12)


def write_table(folder, numbers) -> None:
    """Three regions of each of COCO's images in LXMERT's columns; their features give the answer away."""
    folder.mkdir()
    draw, lines = np.random.default_rng(0), []
    for number in numbers:
        split, place = ("train", number - 1) if number <= 24 else ("val", number - 25)
        features = 0.1 * draw.standard_normal((3, FEATURES)).astype("<f4")
        features[:, place % 3] += 2
        boxes = np.array([[0, 0, 20, 20], [2, 3, 9, 9], [5, 5, 20, 16]], dtype="<f4")
        packed = [base64.b64encode(own.tobytes()).decode() for own in (boxes, features)]
        row = [f"COCO_{split}2014_{number:012d}", 20, 24, *"abcd", 3, *packed]
        lines.append("\t".join(map(str, row)) + "\n")
    (folder / "obj36.tsv").write_text("".join(lines))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A root with VQA v2 in miniature, its regions, and an LXMERT's folder of Hugging Face."""
    root = tmp_path_factory.mktemp("world")
    write_vqav2(root)
    write_table(root / "regions", range(1, 34))
    config = with_words(lxmert(), root, WORDS)
    export(config, randomize(build_task(config)).state_dict(), root / "lxmert")
    return root


def frozen(world, regions: str = "regions"):
    opened = open_model(world / "lxmert", regions=world / regions)
    return freeze(opened.config, opened.module, opened.described)


def test_what_only_regions_give_away_is_learnt(world):
    task = dataclasses.replace(tasks()["vqav2"], recipe=QUICK)
    model = frozen(world)
    found = task.run(model, find_data(task.data, world))
    assert found["vqa_accuracy"].value == 1


def test_states_are_those_of_transformers_over_the_table(world):
    """As published: without a region for the whole image."""
    transformers = pytest.importorskip("transformers")
    task = tasks()["vqav2"]
    encoder = task.encoder(frozen(world))
    name = "COCO_val2014_000000000026"
    regions = encoder.stored_regions.read(name)
    ids = np.array([2, 5, 6, 7, 3])
    theirs = transformers.LxmertModel.from_pretrained(world / "lxmert").eval()
    features, boxes = (torch.tensor(own)[None] for own in (regions.features, regions.boxes))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)[None], visual_feats=features, visual_pos=boxes).pooled_output
        assert len(regions.boxes) == 3 and difference(encoder([ids], [regions]), expected) < 1e-5


def test_the_command_prints_the_published_row_beside_it(world, capsys, monkeypatch):
    monkeypatch.setitem(TEST_SAMPLES, "vqav2", (9,))  # questions of the miniature
    given = ["evaluate", str(world / "lxmert"), "--task", "vqav2", "--data", str(world)]
    assert main([*given, "--regions", str(world / "regions")]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)["vqav2"]
    assert result["family"] == "lxmert" and "LXMERT (test-dev) 72.40 %, FLAVA (test-dev) 72.49 %" in said.err
    assert result["scores"]["vqa_accuracy"]["published"][0]["value"] == pytest.approx(0.724)
    assert main(given) != 0
    assert (
        "give its weights as model.detector, or to this evaluation with --regions" in capsys.readouterr().err
    )


def test_a_detectors_weights_serve_tasks_that_take_no_stored_regions(world):
    """Of another width than the model reads, they are refused; of its own, they find regions."""
    with pytest.raises(ConfigError, match="'demo' gives features of width 64, and the model reads 6"):
        open_model(world / "lxmert", regions=Path("demo")).frozen()
    config = open_model(world / "lxmert").config
    image = dataclasses.replace(config.model.image, feature_size=64)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    export(config, randomize(build_task(config)).state_dict(), world / "wide")
    model = open_model(world / "wide", regions=Path("demo")).frozen()
    assert model.offered(Matcher) is not None and model.image_size == 224


def test_images_without_regions_are_named_before_anything_is_read(world):
    write_table(world / "half", range(1, 31))
    task = tasks()["vqav2"]
    with pytest.raises(DataError, match="has no regions of 3 images, COCO_val2014_000000000031 among them"):
        task.run(frozen(world, "half"), find_data(task.data, world))
    with pytest.raises(UserError, match="--regions .*nowhere: no such folder"):
        frozen(world, "nowhere")
    config = dataclasses.replace(open_model(world / "lxmert").config)
    from flava_ds.families.bert.config import BertConfig

    with pytest.raises(UserError, match="family 'bert' read pictures and no regions"):
        with_regions(dataclasses.replace(config, model=BertConfig()), world)


def test_weights_on_regions_that_were_found_before_are_not_opened_for_other_images(world, tmp_path):
    task = dataclasses.replace(tasks()["vqav2"], recipe=dataclasses.replace(QUICK, updates=1))
    task.run(frozen(world).at(Workplace(tmp_path, keep_weights=True)), find_data(task.data, world))
    with pytest.raises(UserError, match="reads regions, and lxmert has only those that a detector found"):
        FineTuned(tmp_path / "vqav2.best.safetensors", frozen(world))
