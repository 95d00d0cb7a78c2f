"""Losses on held-out shards are those that a training step on them would log."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from data.shard_files import write_tar
from families.bert.bert_peers import randomize
from families.unit.unit_toys import tiny_config
from safetensors.numpy import save
from sample_runs import pair, world_config, write_world
from torchvision.io import encode_png

from flava_ds.codebook.frozen import add_codebook
from flava_ds.config import TrainingConfig
from flava_ds.data.loader import StepLoader
from flava_ds.demo.shards import write_shards
from flava_ds.errors import DataError
from flava_ds.evaluation import run_losses
from flava_ds.evaluation.frozen_model import Described, Lacking
from flava_ds.evaluation.opening import freeze
from flava_ds.evaluation.registry import find
from flava_ds.evaluation.run_losses import RunLosses
from flava_ds.evaluation.runner import evaluate, find_all
from flava_ds.evaluation.shares import Share
from flava_ds.evaluation.statistics import mean_of_batches
from flava_ds.families.flava.task import build_task

NAME, EACH = "held_out_losses", 8
STEPS = {"pair": 3, "text": 2}
"""That many batches of held-out samples there are, or are taken."""


def measured(config, folder, limit=None):
    tasks = find([NAME])
    model = freeze(config, build_task(config).eval(), Described("world", "flava"))
    return evaluate(tasks, model, find_all(tasks, folder, limit=limit))[NAME]


def logged(config, kind: str, shards: str) -> dict[str, float]:
    """Means of loss and accuracy over the terms of the steps that a run over these shards would take, from
    the step's own sums.
    """
    source = dataclasses.replace(config.data.sources[kind], shards=shards, seed=None, global_batch_size=EACH)
    config = dataclasses.replace(
        config.with_sources({kind: source}),
        training=TrainingConfig(total_steps=STEPS[kind], precision="fp32", global_batch_size=EACH),
    )
    task, sums, terms = build_task(config).eval(), {}, {}
    add_codebook(task, config, torch.device("cpu"))
    for (batch,) in StepLoader(config):
        counts = task.counts(batch)
        ones = {name: torch.ones(()) for name in counts}
        for name, value in task.step(task.complete(batch), ones).sums.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        for name, count in counts.items():
            terms[name] = terms.get(name, 0) + count
    return {
        name.replace("/loss", "_loss").replace("/correct", "_accuracy"): value / terms[name.split("/")[0]]
        for name, value in sums.items()
        if name.endswith(("/loss", "/correct"))
    }


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(run_losses, "GALLERY", EACH)
    data, held_out = write_world(tmp_path / "data"), tmp_path / "held_out"
    held_out.mkdir()
    (data / "pairs-unseen-style").rename(held_out / "pair")
    (data / "text-test").rename(held_out / "text")
    return world_config(tmp_path), held_out


def test_they_are_what_training_would_log(world):
    config, held_out = world
    mismatched = dataclasses.replace(config.objectives["itm"], mismatch_probability=0.5)
    config = dataclasses.replace(config, objectives={**config.objectives, "itm": mismatched})
    result = measured(config, held_out.parent, limit=EACH * STEPS["pair"])
    expected = {}
    for kind in STEPS:
        expected |= logged(config, kind, str(held_out / kind))
    assert expected.keys() == result.scores.keys() > {"mlm_loss", "mlm_accuracy", "global_contrastive_loss"}
    for name, value in expected.items():
        assert result.scores[name].value == pytest.approx(value, abs=1e-6), name
    loss = result.scores["mmm_image_loss"]
    assert (loss.unit, loss.higher_is_better) == ("nats", False)
    assert result.facts["samples"] == EACH * sum(STEPS.values())


def test_what_cannot_be_measured_is_one_line(world, tmp_path):
    config, held_out = world
    images = tmp_path / "images" / "held_out" / "image"
    write_shards(images, [pair(0, "noto")], 20)
    with pytest.raises(DataError, match="1 samples are too few for 2 ranks"):
        next(RunLosses(config, build_task(config)).sums("image", images, 1, Two()))
    only_text = dataclasses.replace(config, objectives={"mlm": config.objectives["mlm"]})
    with pytest.raises(
        Lacking, match="held-out shards are of image steps, but world trains on those of text"
    ):
        measured(only_text, tmp_path / "images")


class Two(Share):
    def __init__(self, rank=0):
        super().__init__()
        self.rank, self.parts = rank, 2


class Half(Two):
    """One of two threads that add up what both have."""

    def __init__(self, rank, met, given):
        super().__init__(rank)
        self.met, self.given = met, given

    def add(self, mine):
        self.given[self.rank] = mine()
        self.met.wait()
        total = [sum(own) for own in zip(*self.given, strict=True)]
        self.met.wait()
        return total


def test_a_loss_over_two_ranks_is_that_of_one_also_where_the_step_normalises_it(tmp_path):
    """Detection divides the boxes' loss by the objects of the step: the first half here has none."""
    draw, members = np.random.default_rng(0), []
    for number in range(8):
        pixels, count = draw.integers(0, 256, (3, 16, 16), dtype=np.uint8), 3 * (number > 3)
        boxes = np.tile(np.array([[0.1, 0.2, 0.5, 1]], np.float32), (count, 1))
        members += [(f"{number}.png", encode_png(torch.from_numpy(pixels)).numpy().tobytes())]
        labels = {"labels": draw.integers(0, 5, count), "boxes": boxes}
        members += [(f"{number}.targets.safetensors", save(labels))]
    write_tar(tmp_path / "0.tar", members)
    config = dataclasses.replace(tiny_config(), data=dataclasses.replace(tiny_config().data, shuffle=False))
    losses = RunLosses(config, randomize(config.model.build(config)).eval())
    [expected] = losses.sums("detection", tmp_path, 8, Share())
    met, given = threading.Barrier(2), [[], []]
    halves = [losses.sums("detection", tmp_path, 8, Half(rank, met, given)) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        found, again = pool.map(next, halves)
    assert found == again and found["detection"].terms == expected["detection"].terms
    for name in ("loss", "correct"):
        found_sum, whole = (getattr(own["detection"], name) for own in (found, expected))
        assert found_sum == pytest.approx(whole, rel=1e-5)


def test_the_error_of_a_mean_is_that_of_a_ratio_over_batches():
    score = mean_of_batches([6.0, 2.0], [3, 2])
    assert score.value == pytest.approx(8 / 5)
    # residuals 6 - 4.8 and 2 - 3.2; sqrt(2 / 1 * (1.44 + 1.44)) / 5
    assert score.standard_error == pytest.approx((2 * 2.88) ** 0.5 / 5)
    assert mean_of_batches([6.0], [3]).standard_error is None
