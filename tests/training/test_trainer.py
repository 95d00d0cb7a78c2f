"""The whole loop with the real model and data: kill and resume, signals, divergence, and measurements that disturb nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from real_runs import Job, real_config
from test_engine import batches_of
from toy import KINDS, Toy, partition_everything, toy_config

from flava_ds import config as configuration
from flava_ds.build import build_trainer
from flava_ds.checkpoints import checkpoint
from flava_ds.checkpoints.files import LATEST, latest, place_of
from flava_ds.checkpoints.reader import load_weights
from flava_ds.config import Config, EngineConfig, LoggingConfig, TrainingConfig
from flava_ds.errors import UserError
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.optimizers.adamw import AdamWConfig
from flava_ds.ranks.distributed import start
from flava_ds.training.engine import Engine
from flava_ds.training.trainer import Trainer


class ToyLoader:
    """The toy's round robin as a loader; steps in `poison` carry a NaN on rank 0."""

    def __init__(self, world, steps: range, accumulation: int, poison: frozenset[int] = frozenset()) -> None:
        self.world, self.steps, self.accumulation, self.poison = world, steps, accumulation, poison

    def __iter__(self):
        for step in self.steps:
            batches = batches_of(KINDS[step % len(KINDS)], step, self.world.size, self.accumulation)[self.world.rank]
            if step in self.poison and self.world.is_main:
                batches[0]["pixel_values"].fill_(float("nan"))
                batches[0]["input_ids"].fill_(float("nan"))
            yield batches

    def state(self, step: int) -> dict:
        return {"step": step}

    def go_back(self, step: int, failed: int) -> None:
        raise AssertionError("no test of these diverges")

    def progress(self, step: int) -> dict:
        return {}


def toy_trainer(folder: str, poison: frozenset[int] = frozenset(), deepspeed_config: str = "zero1", **changes) -> Trainer:
    """A trainer of the toy; `changes` are those of LoggingConfig."""
    world = start(60)
    logging = LoggingConfig(run_directory=folder, every_steps=2, tensorboard=False, **changes)
    config = dataclasses.replace(toy_config(deepspeed_config, gradient_accumulation_steps=2, stop_on_nonfinite=3), logging=logging)
    checkpoint.prepare(config, world)
    module = Toy()
    engine = Engine(module, config, world)
    return build_trainer(config, engine, ToyLoader(world, range(12), 2, poison), 0)


def steps_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()][1:]


def numbers(lines: list[dict]) -> list[dict]:
    """What must not depend on timing."""
    return [
        {key: value for key, value in line.items() if key in ("step", "kind", "source", "lr", "grad_norm") or key[:5] in ("loss/", "accur")} for line in lines
    ]


def fit_toy(folder: str, poison: frozenset[int], gradient_norms_every: int) -> tuple:
    trainer = toy_trainer(folder, poison, objective_gradient_norms_every=gradient_norms_every)
    try:
        status = trainer.fit()
    except UserError as error:
        return str(error), int(trainer.engine.skipped)
    return status, int(trainer.engine.skipped)


def test_measuring_objective_gradients_disturbs_nothing(run_ranks, tmp_path):
    plain, measured = tmp_path / "plain", tmp_path / "measured"
    assert run_ranks(fit_toy, 1, str(plain), frozenset(), 0) == [(0, 0)]
    assert run_ranks(fit_toy, 1, str(measured), frozenset(), 1) == [(0, 0)]
    without, with_norms = steps_of(plain / "toy"), steps_of(measured / "toy")
    assert numbers(without) == numbers(with_norms)
    assert not any(key.startswith("gradient_norm/") for line in without for key in line)
    pair = next(line for line in with_norms if line["kind"] == "pair")
    assert {"gradient_norm/mmm_text", "gradient_norm/itm"} <= pair.keys() and pair["encoder_gradient_norm/itm/text_encoder"] > 0
    assert {f"gradient_norm/{name}" for name in ("mim", "mlm", "mmm_text", "itm")} <= {key for line in with_norms for key in line}


def test_a_few_bad_steps_are_survived_and_many_end_the_run(run_ranks, tmp_path):
    assert run_ranks(fit_toy, 1, str(tmp_path / "few"), frozenset({3, 4, 8}), 0) == [(0, 3)]
    ((said, skipped),) = run_ranks(fit_toy, 1, str(tmp_path / "many"), frozenset({4, 5, 6, 7}), 0)
    assert "updates in a row were skipped" in said and "stop_on_nonfinite is 3" in said and skipped == 4
    assert [line["skipped_updates"] for line in steps_of(tmp_path / "many" / "toy")] == [0, 0, 2, 4]


def finish(processes: list[subprocess.Popen]) -> None:
    """Waits for a launched run and expects it to end well."""
    for process in processes:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said


def launch(config: Config, path: Path, ranks: int) -> list[subprocess.Popen]:
    """Starts flava_ds.train as a launcher would."""
    configuration.save(config, path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = {**os.environ, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flava_ds.train", str(path)]
    return [
        subprocess.Popen([*command, f"--local_rank={rank}"], env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]


def wait_for_lines(log: Path, count: int, processes: list[subprocess.Popen]) -> None:
    """Waits until the log has `count` step lines."""
    deadline = time.monotonic() + 120
    while not log.is_file() or log.read_text().count("\n") <= count:
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), [p.communicate()[1] for p in processes]
        time.sleep(0.005)


@pytest.mark.parametrize(("off", "source"), [("mmm_image", None), ("mim", 1), ("mlm", 2), ("mmm_text", None), ("itm", None), ("global_contrastive", None)])
def test_every_objective_can_be_left_out(tmp_path, off, source):
    """Without mmm_image, pairs come without the codebook's view while image batches still need their codes; `source` is the one that `off` alone reads."""
    config = real_config(tmp_path, training=TrainingConfig(total_steps=8, global_batch_size=8, gradient_accumulation_steps=2, precision="fp32"))
    objectives = {**config.objectives, off: dataclasses.replace(config.objectives[off], weight=0.0)}
    sources = tuple(s for number, s in enumerate(config.data.sources) if number != source)
    config = dataclasses.replace(config, objectives=objectives, data=dataclasses.replace(config.data, sources=sources))
    job = Job(config, 1)
    assert job.wait() == [0], job.said()
    lines = steps_of(config.run_path)
    losses = {name for line in lines for name in line if name.startswith("loss/")}
    assert losses == {f"loss/{name}" for name in objectives if name != off} and {line["kind"] for line in lines} == {s.kind for s in sources}


@pytest.mark.distributed
@pytest.mark.slow
def test_ranks_and_stages_do_not_change_the_curve(tmp_path):
    """One rank with ZeRO-1 against two with ZeRO-3 that keeps nothing whole: the same samples, losses and gradient norms.

    eps is large, since key biases have rounding noise for a gradient, which a small one turns into whole steps. Half of the captions are
    replaced, by those of pairs that another micro-batch or rank may hold; a caption that stands twice makes ties, so which text ranks first is
    left to rounding.
    """
    training = TrainingConfig(total_steps=8, global_batch_size=8, gradient_accumulation_steps=2, precision="fp32", gradient_clipping=1.0)
    one = real_config(tmp_path, name="one", training=training, optimizer=AdamWConfig(lr=1e-2, eps=1e-2))
    matching = {**one.objectives, "itm": ImageTextMatchingConfig(mismatch_probability=0.5)}
    one = dataclasses.replace(one, objectives=matching)
    two = dataclasses.replace(one, name="two", engine=EngineConfig(deepspeed_config=partition_everything(tmp_path)))
    finish(launch(one, tmp_path / "one.json", 1))
    finish(launch(two, tmp_path / "two.json", 2))
    for a, b in zip(numbers(steps_of(one.run_path)), numbers(steps_of(two.run_path)), strict=True):
        assert (a.pop("kind"), a.pop("source")) == (b.pop("kind"), b.pop("source"))
        assert ("accuracy/global_contrastive" in a) == ("accuracy/global_contrastive" in b)
        a, b = ({key: value for key, value in line.items() if key != "accuracy/global_contrastive"} for line in (a, b))
        assert a == pytest.approx(b, rel=1e-5), (a, b)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_with_a_bitwise_equal_curve(tmp_path, how):
    """Two ranks, the real model and data; SIGKILL falls at any moment, SIGTERM reaches one rank only and both save and leave."""
    whole = real_config(tmp_path, name="whole")
    broken = dataclasses.replace(whole, name="broken")
    finish(launch(whole, tmp_path / "whole.json", 2))
    processes = launch(broken, tmp_path / "broken.json", 2)
    wait_for_lines(broken.run_path / "log.jsonl", 6, processes)
    wait_for_lines(broken.run_path / "checkpoints" / LATEST, 0, processes)
    for process in processes[: 2 if how == signal.SIGKILL else 1]:
        process.send_signal(how)
    statuses = [process.wait(60) for process in processes]
    assert statuses == ([-9, -9] if how == signal.SIGKILL else [143, 143])
    stopped_at = int(latest(place_of(broken.run_path)).name.removeprefix("step_"))
    assert stopped_at < 14 and (how == signal.SIGTERM or stopped_at % 4 == 0)
    finish(launch(broken, tmp_path / "broken.json", 2))
    expected, found = steps_of(whole.run_path), steps_of(broken.run_path)
    assert [line["step"] for line in found] == list(range(14))
    assert numbers(found) == numbers(expected)
    assert {line["kind"] for line in found} == {"image", "text", "pair"}
    ours, theirs = load_weights(broken.run_path), load_weights(whole.run_path)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((broken.run_path / "log.jsonl").read_text().splitlines()[0])["resumed"][0]["step"] == stopped_at
