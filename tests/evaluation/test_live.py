"""Ranks that train evaluate together what one process would find on the same weights, whatever ZeRO has made
of them.
"""

import contextlib
import dataclasses
import os
from pathlib import Path

import pytest
import torch
from evaluation.color_world import write_image_folder
from evaluation.language_world import write_sst2
from sample_runs import pair, world_config

from flava_ds.config import CheckpointConfig, EngineConfig, EvaluationConfig, TrainingConfig
from flava_ds.demo.shards import write_shards
from flava_ds.errors import UserError
from flava_ds.evaluation import frozen_model, run_losses
from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.frozen_model import Described
from flava_ds.evaluation.labelled import Seen
from flava_ds.evaluation.live import LiveEvaluation
from flava_ds.evaluation.opening import freeze
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM
from flava_ds.evaluation.protocols import Embedder, Score
from flava_ds.evaluation.registry import find, register
from flava_ds.evaluation.runner import evaluate, find_all
from flava_ds.families.flava.task import build_task
from flava_ds.ranks.distributed import start
from flava_ds.training.engine import Engine
from flava_ds.training.whole_weights import WholeWeights


@dataclasses.dataclass(frozen=True)
class Sensitive:
    """A number that every weight of both encoders moves a little, which an accuracy on colours does not."""

    name: str = "sensitive"
    about: str = "mean inner product of images with prompts"
    needs: tuple = (Embedder,)
    data: ImageFolder = ImageFolder()

    def run(self, model, data):
        images = model.image_embeddings(Seen(data.test(), CLIP_TRANSFORM), self.name)
        texts = model.text_embeddings(["a drawing of owl", "kite"], self.name)
        return {"mean": Score(float((images @ texts.T).double().mean()), len(images), None)}


TASKS = ("sensitive", "image_folder_probe", "glue_sst2", "held_out_losses")
register(Sensitive())


def write_sets(root: Path) -> None:
    """Writes the tasks' data."""
    write_image_folder(root / "image_folder", {"train": 9, "test": 4})
    write_sst2(root)
    write_shards(root / "held_out" / "pair", [pair(n, "noto") for n in range(12)], 20)


def config_of(folder: Path, stage: str, **settings):
    """A tiny run in fp32 that evaluates."""
    config = world_config(folder)
    evaluation = EvaluationConfig(every_steps=5, tasks=TASKS, data_root=str(folder / "sets"), limit=20)
    training = TrainingConfig(total_steps=10, global_batch_size=4, precision="fp32")
    return dataclasses.replace(
        config,
        evaluation=evaluation,
        training=training,
        engine=EngineConfig(deepspeed_config=stage),
        **settings,
    )


def shift(parameters) -> None:
    """Moves weights by something that depends on their place, so that a mix-up would show."""
    for number, parameter in enumerate(parameters):
        draw = torch.Generator().manual_seed(number)
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=draw)


def on_ranks(folder: Path, stage: str):
    """Evaluates twice, with other weights the second time; returns both, and whether the engine still works
    with its own.
    """
    import deepspeed

    world, config = start(60), config_of(folder, stage)
    frozen_model.BATCH_ROWS, run_losses.GALLERY = 4, 4
    module = build_task(config)
    engine = Engine(module, config, world)
    weights = WholeWeights(engine, lambda: build_task(config))
    live = LiveEvaluation(config, engine.module, world, weights.lent)
    first = live()
    parameters = list(engine.module.parameters())
    if engine.stage == 3:
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            if world.is_main:
                shift(parameters)
    else:
        shift(parameters)
    sizes = [parameter.numel() for parameter in parameters]
    second = live()
    kept = engine.module.training and sizes == [parameter.numel() for parameter in parameters]
    return first, second, kept


@pytest.mark.distributed
@pytest.mark.parametrize("stage", ["zero1", "zero3"])
def test_two_ranks_find_what_one_process_finds(tmp_path, run_ranks, stage, monkeypatch):
    monkeypatch.setattr(run_losses, "GALLERY", 4)
    write_sets(tmp_path / "sets")
    config, tasks = config_of(tmp_path, stage), find(TASKS)
    expected = []
    module = build_task(config).eval()
    for again in (False, True):
        if again:
            shift(module.parameters())
        model = freeze(config, module, Described("alone", "flava"))
        results = evaluate(tasks, model, find_all(tasks, tmp_path / "sets", limit=20))
        expected.append({name: result.scores for name, result in results.items()})
    found = run_ranks(on_ranks, 2, tmp_path, stage)
    assert found[0] == found[1] and found[0][2], "the ranks agree, and the module is as it was"
    for ours, theirs in zip(found[0][:2], expected, strict=True):
        assert {task: set(scores) for task, scores in ours.items()} == {
            task: set(scores) for task, scores in theirs.items()
        }
        for task in TASKS:
            for name, score in ours[task].items():
                assert score.value == pytest.approx(theirs[task][name].value, abs=1e-6), (task, name)
    before, after = (scores["sensitive"]["mean"].value for scores in expected)
    assert abs(before - after) > 1e-3, "the second weights must tell, or this test could not fail"


def stats_of_pictures(folder: Path) -> tuple[int, int]:
    """Evaluates twice; returns how many pictures there are and how many the second time asks the state of."""
    world, config = start(60), config_of(folder, "zero1")
    module = build_task(config).eval()
    live = LiveEvaluation(config, module, world, lambda: contextlib.nullcontext(module))
    live()
    asked, stat = [], os.stat

    def counted(path, *arguments, **named):
        asked.append(str(path))
        return stat(path, *arguments, **named)

    os.stat = counted
    live()
    live.of_pixels()
    return len(list(folder.rglob("*.png"))), sum(path.endswith(".png") for path in asked)


@pytest.mark.distributed
def test_scores_alone_take_no_look_at_the_state_of_every_picture(tmp_path, run_ranks):
    """1.3 million of ImageNet for every task, on every rank."""
    write_sets(tmp_path / "sets")
    assert run_ranks(stats_of_pictures, 1, tmp_path) == [(3 * (9 + 4), 0)]


def refused(folder: Path, best_metric: str):
    world, config = (
        start(60),
        config_of(folder, "zero1", checkpoint=CheckpointConfig(best_metric=best_metric)),
    )
    if world.rank == 1:
        config = dataclasses.replace(
            config, evaluation=dataclasses.replace(config.evaluation, data_root=str(folder / "elsewhere"))
        )
    module = build_task(config)
    try:
        LiveEvaluation(config, module, world, None)
    except UserError as error:
        return str(error), error.on_all_ranks


@pytest.mark.distributed
def test_what_one_rank_lacks_ends_all_at_the_start(tmp_path, run_ranks):
    write_sets(tmp_path / "sets")
    first, second = run_ranks(refused, 2, tmp_path, "")
    assert first == second and "no image_folder in" in first[0] and "elsewhere" in first[0] and first[1]


def breaks(folder: Path):
    """The first task fails on rank 1 outside of any exchange, while rank 0 goes on to the next one."""
    world, config = start(60), config_of(folder, "zero1")
    module = build_task(config).eval()
    live = LiveEvaluation(config, module, world, None)

    class Breaks:
        def __getattr__(self, name):
            return getattr(live_tasks[0], name)

        def run(self, model, data):
            if world.rank == 1:
                raise ValueError("here alone")
            return live_tasks[0].run(model, data)

    live_tasks = live.tasks
    live.tasks = [Breaks(), *live_tasks[1:]]
    live._lend = lambda: contextlib.nullcontext(module)
    try:
        live()
    except UserError as error:
        return str(error)


@pytest.mark.distributed
def test_an_error_in_one_ranks_task_ends_all_without_a_wait(tmp_path, run_ranks):
    write_sets(tmp_path / "sets")
    first, second = run_ranks(breaks, 2, tmp_path)
    assert first == second and first.startswith(f"task sensitive failed: {__file__}:")
    assert first.endswith(": ValueError: here alone")
