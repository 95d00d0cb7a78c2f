"""The whole loop with the real model and data: kill and resume, signals, divergence, and measurements that
disturb nothing.
"""

from __future__ import annotations

import dataclasses

import pytest
from real_runs import Job, real_config, steps_of
from test_engine import batches_of
from toy import KINDS, Toy, toy_config

from flava_ds.build import build_trainer
from flava_ds.checkpoints import checkpoint
from flava_ds.checkpoints.files import place_of
from flava_ds.checkpoints.reader import good_checkpoints
from flava_ds.config import LoggingConfig, TrainingConfig
from flava_ds.errors import UserError
from flava_ds.ranks.distributed import start
from flava_ds.training.engine import Engine
from flava_ds.training.trainer import Trainer
from flava_ds.training.watcher import Update, Watcher


class EndsAtFive(Watcher):
    """Cannot go on after the fifth update."""

    def after_update(self, update: Update) -> None:
        if update.step == 4:
            self.failure = UserError("task mine failed").everywhere()


class ToyLoader:
    """The toy's round robin as a loader; steps in `poison` carry a NaN on rank 0."""

    def __init__(self, world, steps: range, accumulation: int, poison: frozenset[int] = frozenset()) -> None:
        self.world, self.steps, self.accumulation, self.poison = world, steps, accumulation, poison

    def __iter__(self):
        for step in self.steps:
            batches = batches_of(KINDS[step % len(KINDS)], step, self.world.size, self.accumulation)[
                self.world.rank
            ]
            if step in self.poison and self.world.is_main:
                batches[0]["pixel_values"].fill_(float("nan"))
                batches[0]["input_ids"].fill_(float("nan"))
            yield batches

    def state(self, step: int) -> dict:
        return {"toy": {"step": step, "jumps": []}}

    def go_back(self, step: int, failed: int) -> None:
        raise AssertionError("no test of these diverges")

    def progress(self, step: int) -> dict:
        return {}

    def steps_left(self, step: int) -> dict:
        return {}


def toy_trainer(
    folder: str,
    poison: frozenset[int] = frozenset(),
    deepspeed_config: str = "zero1",
    precision: str = "fp32",
    **changes,
) -> Trainer:
    """A trainer of the toy; `changes` are those of LoggingConfig."""
    world = start(60)
    logging = LoggingConfig(run_directory=folder, every_steps=2, tensorboard=False, **changes)
    config = dataclasses.replace(
        toy_config(deepspeed_config, gradient_accumulation_steps=2, stop_on_nonfinite=3, precision=precision),
        logging=logging,
    )
    checkpoint.prepare(config, world)
    module = Toy()
    engine = Engine(module, config, world)
    return build_trainer(config, engine, ToyLoader(world, range(12), 2, poison), 0)


def numbers(lines: list[dict]) -> list[dict]:
    """What must not depend on timing."""
    return [
        {
            key: value
            for key, value in line.items()
            if key in ("step", "kind", "source", "lr", "grad_norm") or key[:5] in ("loss/", "accur")
        }
        for line in lines
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
    assert {"gradient_norm/mmm_text", "gradient_norm/itm"} <= pair.keys() and pair[
        "encoder_gradient_norm/itm/text_encoder"
    ] > 0
    assert {f"gradient_norm/{name}" for name in ("mim", "mlm", "mmm_text", "itm")} <= {
        key for line in with_norms for key in line
    }


def test_a_few_bad_steps_are_survived_and_many_end_the_run(run_ranks, tmp_path):
    assert run_ranks(fit_toy, 1, str(tmp_path / "few"), frozenset({3, 4, 8}), 0) == [(0, 3)]
    ((said, skipped),) = run_ranks(fit_toy, 1, str(tmp_path / "many"), frozenset({4, 5, 6, 7}), 0)
    assert "updates in a row were skipped" in said and "stop_on_nonfinite is 3" in said and skipped == 4
    assert [line["skipped_updates"] for line in steps_of(tmp_path / "many" / "toy")] == [0, 0, 2, 4]


def fit_until_a_watcher_fails(folder: str) -> list[str]:
    """Returns the names of the checkpoints."""
    trainer = toy_trainer(folder)
    trainer.watchers = (EndsAtFive(), *trainer.watchers)
    with pytest.raises(UserError, match="task mine failed"):
        trainer.fit()
    return [place.name for place in good_checkpoints(place_of(trainer.config.run_path, trainer.config))]


def test_what_a_run_has_learnt_is_saved_before_an_evaluation_ends_it(run_ranks, tmp_path):
    assert run_ranks(fit_until_a_watcher_fails, 2, str(tmp_path)) == [["step_00000005"]] * 2
    assert steps_of(tmp_path / "toy")[-1]["step"] == 3, "the log's line of every second step"


@pytest.mark.parametrize(
    ("off", "source"),
    [
        ("mmm_image", None),
        ("mim", "image"),
        ("mlm", "text"),
        ("mmm_text", None),
        ("itm", None),
        ("global_contrastive", None),
    ],
)
def test_every_objective_can_be_left_out(tmp_path, off, source):
    """Without mmm_image, pairs come without the codebook's view while image batches still need their codes;
    `source` is the one that `off` alone reads.
    """
    config = real_config(
        tmp_path,
        training=TrainingConfig(
            total_steps=8, global_batch_size=8, gradient_accumulation_steps=2, precision="fp32"
        ),
    )
    objectives = {**config.objectives, off: dataclasses.replace(config.objectives[off], weight=0.0)}
    sources = {name: read for name, read in config.data.sources.items() if name != source}
    config = dataclasses.replace(config.with_sources(sources), objectives=objectives)
    job = Job(config, 1)
    assert job.wait() == [0], job.said()
    lines = steps_of(config.run_path)
    losses = {name for line in lines for name in line if name.startswith("loss/")}
    assert losses == {f"loss/{name}" for name in objectives if name != off}
    assert {line["kind"] for line in lines} == {read.kind for read in sources.values()}
