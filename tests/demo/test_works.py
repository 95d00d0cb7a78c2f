"""Works are what they say: metrics that are measured, options that exist, and a size that the estimate of
time knows.
"""

import argparse

import pytest

from flava_ds.commands.demo import add_arguments
from flava_ds.data.loader import StepLoader
from flava_ds.demo.dataset import unpack
from flava_ds.demo.evaluation.summary import ROWS
from flava_ds.demo.works import GFLOP_OF_A_STEP, WORKS, expected_seconds
from flava_ds.recipes import resolve


def test_works_ask_for_metrics_of_the_table_and_the_longest_asks_for_most():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args([]).work in WORKS and all(work.name == name for name, work in WORKS.items())
    assert all(set(work.thresholds) <= {metric for metric, _ in ROWS} for work in WORKS.values())
    short, hour = WORKS["ten-minutes"], WORKS["hour"]
    assert short.total_steps < hour.total_steps
    assert all(hour.thresholds[metric] > least for metric, least in short.thresholds.items())


@pytest.mark.parametrize("work", WORKS.values(), ids=list(WORKS))
def test_overrides_are_options_of_the_recipe(work):
    assert (
        resolve(
            "demo",
            [
                "--training.total-steps",
                str(work.total_steps),
                "--schedule.warmup-steps",
                "1",
                *work.overrides,
            ],
        ).name
        == "demo"
    )


def test_the_size_of_a_step_is_that_of_real_batches(tmp_path):
    data = unpack(tmp_path / "data")
    folders = {"pair": data / "pairs-train", "image": data / "images", "text": data / "text"}
    words = ["--data.num-workers", "0", "--schedule.warmup-steps", "1", "--training.total-steps", "40"]
    for name, folder in folders.items():
        words += [f"--data.sources.{name}.shards", str(folder)]
    config, flops = resolve("demo", words), {}
    task = config.model.build(config)
    for (batch,) in StepLoader(config):
        flops.setdefault(batch.source, task.flops(batch))
        if len(flops) == len(folders):
            break
    weights = {name: source.weight for name, source in config.data.sources.items()}
    mean = sum(weight * flops[name] for name, weight in weights.items()) / sum(weights.values())
    assert GFLOP_OF_A_STEP == pytest.approx(mean / 1e9, rel=0.1)


def test_expected_time_is_that_of_the_steps_and_of_what_follows():
    slow, fast = expected_seconds(100, 50.0, 40.0), expected_seconds(100, 100.0, 80.0)
    assert slow == pytest.approx(2 * fast)
    assert expected_seconds(200, 50.0, 40.0) > slow > expected_seconds(0, 50.0, 40.0) > 0


@pytest.mark.parametrize(
    ("bf16", "fp32", "seconds"),
    [(328.0, 150.0, 0.218), (150.0, 150.0, 0.46), (1582.0, 166.0, 0.61), (2386.0, 296.0, 0.36)],
)
def test_expected_time_is_near_that_of_the_machines_met_so_far(bf16, fp32, seconds):
    """Among them one of bf16 products so fast that they are a twentieth of a step."""
    step = expected_seconds(1, bf16, fp32) - expected_seconds(0, bf16, fp32)
    assert 1 / 3 < step / seconds < 3
