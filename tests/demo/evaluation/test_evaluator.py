"""A run's folder in, evaluation.json out: the same numbers every time, every failure named."""

import json
import math
import time
from dataclasses import replace

import pytest
import torch
from sample_runs import frozen, world, world_config, write_run

from flava_ds import config as configuration
from flava_ds.config import DataConfig, SourceConfig
from flava_ds.demo.evaluation.evaluator import MEASUREMENTS, evaluate, evaluate_run, find_data
from flava_ds.demo.evaluation.summary import gates, table
from flava_ds.demo.works import WORKS
from flava_ds.errors import CheckpointError, UserError


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    run, data = write_run(tmp_path_factory.mktemp("run"))
    return run, data, evaluate_run(run, data=data)


def test_the_file_holds_what_is_returned(evaluated):
    run, _, result = evaluated
    assert json.loads((run / "evaluation.json").read_text()) == result
    assert result["step"] == 12 and result["checkpoint"] == "step_00000012" and result["left_out"] == {}
    assert not list(run.glob(".evaluation*"))


def test_every_measurement_contributes_and_every_number_is_finite(evaluated):
    metrics = evaluated[2]["metrics"]
    assert {name.split("/")[0] for name in metrics} == MEASUREMENTS.keys() - {"pixel_baseline"}
    assert any(name.endswith("/pixel_1nn") for name in metrics)
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert all(0 <= value <= 1 for name, value in metrics.items() if not name.endswith("_nats"))


def test_every_reference_stands_beside_a_metric(evaluated):
    metrics = evaluated[2]["metrics"]
    for suffix in ("/chance", "/pixel_1nn"):
        assert {name.removesuffix(suffix) for name in metrics if name.endswith(suffix)} <= metrics.keys()


def test_the_same_weights_give_the_same_numbers(evaluated):
    run, data, first = evaluated
    assert evaluate_run(run, data=data)["metrics"] == first["metrics"]


def test_the_data_beside_the_runs_pairs_is_found(evaluated):
    run, data, _ = evaluated
    assert find_data(configuration.load(run / "config.json")) == data


def test_first_losses_come_from_the_log(evaluated):
    losses = evaluated[2]["losses"]
    assert losses["mmm_text"]["first"] == 4.0 and losses["mim"]["first"] == pytest.approx(3.9)
    assert set(losses) == {"global_contrastive", "mmm_image", "mmm_text", "itm", "mim", "mlm"}


def test_an_untrained_model_does_not_pass(evaluated):
    assert not all(passed for *_, passed in gates(evaluated[2], WORKS["ten-minutes"].thresholds))
    assert "zero-shot concept, flat style, top-5" in table(evaluated[2])


def test_no_measurement_starts_after_the_deadline(tmp_path):
    inputs, module = world(tmp_path)
    result = evaluate(frozen(inputs, module), inputs, deadline=time.monotonic() - 1)
    assert result["metrics"] == {} and result["left_out"].keys() == MEASUREMENTS.keys()


def test_half_precision_weights_work(tmp_path):
    inputs, module = world(tmp_path)
    full = evaluate(frozen(inputs, module), inputs)["metrics"]
    half = evaluate(frozen(inputs, module.to(torch.bfloat16)), inputs)["metrics"]
    assert half.keys() == full.keys() and all(math.isfinite(value) for value in half.values())
    assert half["masked/mlm/loss_nats"] == pytest.approx(full["masked/mlm/loss_nats"], rel=0.02)


def test_a_run_without_a_checkpoint_is_named(evaluated, tmp_path):
    (tmp_path / "config.json").write_text((evaluated[0] / "config.json").read_text())
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        evaluate_run(tmp_path, data=evaluated[1])


def test_a_missing_codebook_costs_the_masked_images_only(tmp_path):
    inputs, module = world(tmp_path, codebook_weights=None)
    result = evaluate(frozen(inputs, module), inputs)
    assert "codebook_weights" in result["left_out"]["masked images"]
    assert "masked/mlm/accuracy" in result["metrics"] and "masked/mim/accuracy" not in result["metrics"]


def test_a_run_on_other_data_is_not_the_demos(tmp_path):
    config = world_config(tmp_path)
    elsewhere = DataConfig(sources={"pair": SourceConfig(kind="pair", shards="shards/of/mine")})
    assert find_data(replace(config, data=elsewhere)) is None
    run, _ = write_run(tmp_path)
    (tmp_path / "data" / "concepts.json").unlink()
    with pytest.raises(UserError, match="did not train on the demo's data"):
        evaluate_run(run)


def test_a_run_without_heads_is_measured_as_far_as_it_goes(tmp_path):
    inputs, module = world(tmp_path)
    for name in [name for name in module.objectives if name != "global_contrastive"]:
        del module.objectives[name]
    result = evaluate(frozen(inputs, module), inputs)
    assert {"masked", "matching", "drawing", "writing"} == set(result["left_out"])
    assert (
        "Matcher" in result["left_out"]["matching"]
        and "no objective of type itm" in result["left_out"]["matching"]
    )
