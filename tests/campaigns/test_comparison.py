"""Families compared: equal work, equal measurements, and a table of what each can do."""

import functools

import numpy as np
import pytest
import torch
from demo_flops import flops_of
from torch.utils.flop_counter import FlopCounterMode

from flava_ds import config as configuration
from flava_ds.campaigns import measure
from flava_ds.campaigns.comparison import (
    COLUMNS,
    DETECTOR_TFLOP,
    PIXELS,
    REGIONS,
    ROWS,
    TABLE,
    recipe,
    table_rows,
)
from flava_ds.cli import main
from flava_ds.demo.dataset import unpack
from flava_ds.demo.evaluation.inputs import build_inputs
from flava_ds.evaluation.frozen_model import Described
from flava_ds.evaluation.opening import freeze
from flava_ds.evaluation.tasks.scenes import TASKS
from flava_ds.regions.detector import load_detector, weights_of
from flava_ds.regions.training import DetectorTrainingConfig

LACKS = {
    "demo_bert": {"vision", "retrieval", "fit", "scenes"},
    "demo_vilt": {"vision", "retrieval", "language"},
    "demo_simvlm": {"retrieval"},
    **dict.fromkeys(REGIONS, {"vision", "retrieval"}),
    "demo_unit": {"vision", "retrieval"},
}
"""Domains that a family cannot be measured on."""


@pytest.mark.parametrize("row", PIXELS[1:])
def test_every_row_has_the_flops_of_the_first(row):
    """Those of regions are counted on batches of the planner, in tests/recipes/test_demo.py."""
    assert flops_of_row(row) == pytest.approx(flops_of_row(ROWS[0]), rel=0.03)


@functools.cache
def flops_of_row(row: str) -> float:
    """Counts a row's training FLOPs; each once."""
    return flops_of(recipe(row, 100), 40)


def test_the_detector_has_cost_what_the_table_says():
    detector, training = load_detector(weights_of("demo")), DetectorTrainingConfig()
    size = detector.config.image_size
    with FlopCounterMode(display=False) as counted:
        detector(torch.zeros(training.batch_size, 3, size, size, dtype=torch.uint8))
    flops = 3 * training.total_steps * counted.get_total_flops()
    assert flops / 1e12 == pytest.approx(DETECTOR_TFLOP, rel=0.01)


@pytest.mark.parametrize("row", ROWS)
def test_works_scale_the_steps_and_nothing_else(row):
    whole, small = (configuration.check(recipe(row, TABLE.works[work])) for work in ("small", "tiny"))
    assert whole.training.total_steps == pytest.approx(50 * small.training.total_steps, rel=0.1)
    assert (whole.model, whole.objectives, whole.data) == (small.model, small.objectives, small.data)


@pytest.mark.parametrize("row", [row for row in ROWS if row in LACKS])
def test_domains_that_a_model_lacks_are_left_out_and_said(row, monkeypatch):
    config = recipe(row, 4)
    module = config.model.build(config).eval().requires_grad_(False)
    model = freeze(config, module, Described(row, config.model.type))
    inputs = build_inputs(config, unpack())
    nothing = {"measured": ("words", np.array(["a"]), np.array([True]))}
    for domain in set(measure.MEASURES) - LACKS[row]:
        monkeypatch.setitem(measure.MEASURES, domain, lambda model, inputs: nothing)
    found = measure.measure(model, inputs, TABLE.domains(row, "small") + TABLE.added, some_lack=True)
    assert set(found["lacks"]) == LACKS[row]
    assert all(f"family '{config.model.type}'" in reason for reason in found["lacks"].values())


@pytest.mark.parametrize("row", [row for row in ROWS if "scenes" not in LACKS.get(row, ())])
def test_every_row_with_pair_states_takes_scenes_at_their_own_size(row):
    config = recipe(row, 4)
    module = config.model.build(config).eval().requires_grad_(False)
    model = freeze(config, module, Described(row, config.model.type))
    encoder = TASKS[0].encoder(model)
    assert encoder.image_size == 96 and (model.image_size != 96 or row not in PIXELS)
    texts = model.tokenizer.encode_batch(["is there an owl?", "the owl is brown"], 32)
    pixels = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0)).byte()
    found = encoder(texts, pixels)
    assert found.shape == (2, encoder.width) and found.isfinite().all() and found.requires_grad


def test_the_table_shows_what_there_is():
    def result(seed, **values):
        entries = {
            name: {"clusters": "concepts", "scale": 1, "sums": [value, value]}
            for name, value in values.items()
        }
        work = {"training_flops": 3e13, "training_seconds": 90 + 60 * seed}
        return {"row": "demo_vilt", "seed": seed, "metrics": entries, "counts": {"concepts": [4, 4]}} | work

    one = {"multimodal/fit": 2}
    header, row = table_rows({"demo_vilt": [result(0, **one)]})
    assert header == ["recipe", "seeds", "extra labels", *COLUMNS.values(), "TFLOP", "minutes"]
    assert row == ["demo_vilt", "1", "", *["-"] * 5, "50.0", "-", "-", "30.0", "2"]
    _, row = table_rows({"demo_vilt": [result(1, **{"multimodal/fit": 3}), result(0, **one)]})
    assert row[1] == "2" and row[-5].startswith("62.5 +- ") and row[-1] == "2"


@pytest.mark.parametrize("first", [0, 1])
def test_a_number_that_some_seeds_lack_says_how_many_have_it(first):
    """Of results from before scenes were measured, whichever seeds they are."""
    entry = {"clusters": "concepts", "scale": 1, "sums": [2, 1]}
    work = {"row": "demo", "training_flops": 1e12, "training_seconds": 60, "counts": {"concepts": [4, 4]}}
    results = [work | {"seed": seed, "metrics": {"multimodal/fit": entry}} for seed in (0, 1)]
    results[first]["metrics"]["multimodal/scene_questions"] = entry
    results[first]["metrics"]["multimodal/scene_questions/majority"] = entry | {"sums": [1, 1]}
    _, row, guess = table_rows({"demo": results})
    assert row[9:11] == ["37.5 (1)", "-"] and "+-" in row[8] and "(" not in row[8]
    assert guess == ["(the most frequent answer)", "", "", *["-"] * 6, "25.0", "-", "", ""]


def test_a_recipe_that_is_not_there(tmp_path, capsys):
    assert main(["compare", "--out", str(tmp_path), "--recipes", "demo_vlit"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "--recipes demo_vlit: there is none; did you mean 'demo_vilt'?; choose of demo, demo_clip, " in line
    )
