"""UniT's recipes, and UniT through the real trainer: ranks, stages, accumulation, tasks in turn, resume."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
import torch
from data.shard_files import caption, write_tar
from families.unit.unit_toys import CLASSES, OBJECTIVES, source_of, tiny_model
from real_runs import Job, curve, real_config, steps_of
from safetensors.numpy import save
from torchvision.io import encode_png

from flava_ds import config as configuration
from flava_ds.checkpoints.reader import load_weights
from flava_ds.config import CheckpointConfig, EngineConfig, TrainingConfig, from_dict, to_dict
from flava_ds.families.unit.config import UnitConfig
from flava_ds.recipes import RECIPES
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.measure import META
from flava_ds.scaling.synthetic import batch_of

USED = {name: OBJECTIVES[name] for name in ("detection", "question", "entailment")}


@pytest.mark.parametrize("recipe", ["unit_base", "demo_unit"])
def test_recipes_are_sound_and_survive_json(recipe):
    config = configuration.check(RECIPES[recipe]())
    again = from_dict(type(config), json.loads(json.dumps(to_dict(config))))
    assert again == config and isinstance(again.model, UnitConfig)


def test_the_planner_has_batches_of_every_task_without_data():
    """On no device: matching is left out there, and every part of a task's work is listed."""
    config, work = RECIPES["unit_base"](), {}
    with torch.device("meta"):
        task = config.model.build(config)
    for name, source in config.data.sources.items():
        batch = batch_of(config.model.plan(config, source), name, lengths_of(config, None).get(name), 2)
        work[name] = {part.name for part in task.passes(batch)}
        if name == "genome":
            batch = batch.each(lambda tensor: tensor.to(META))
            ones = {own: torch.ones((), device=META) for own in task.active(name)}
            assert task("step", batch, ones).loss.is_meta
    assert work["detection"] == work["genome"] == work["question"] - {"text_encoder", "text_memory"}
    assert work["sst2"] == {"text_encoder", "text_memory", "decoder"}


def write_scenes(folder):
    """24 pictures with captions; of each, objects, answers and a class."""
    draw, members = np.random.default_rng(0), []
    for number in range(24):
        pixels = torch.from_numpy(draw.integers(0, 256, (3, 16, 16), dtype=np.uint8))
        count = number % 4
        corners = np.sort(draw.integers(0, 100, (count, 2, 2)), axis=1)
        boxes = (np.concatenate([corners[:, 0], corners[:, 1] + 5], axis=1) / 105).astype(np.float32)
        answers = draw.permutation(7)[: 1 + number % 3]
        tensors = {
            "detection": {"labels": draw.integers(0, CLASSES, count), "boxes": boxes},
            "question": {"labels": answers, "scores": draw.random(len(answers)).astype(np.float32)},
            "entailment": {"labels": draw.integers(0, 3, 1)},
        }
        members += [
            (f"{number:03d}.png", encode_png(pixels).numpy().tobytes()),
            (f"{number:03d}.txt", caption(number).encode()),
            *((f"{number:03d}.{task}.safetensors", save(own)) for task, own in tensors.items()),
        ]
    folder.mkdir()
    write_tar(folder / "0.tar", members)
    return folder


def run_config(folder, name, *, stage="zero1", accumulation=1, steps=6, precision="fp32", **settings):
    """Steps of three tasks in turn."""
    base = real_config(folder)
    shards = folder / "scenes"
    shards = shards if shards.exists() else write_scenes(shards)
    sources = {
        task: source_of(
            task,
            shards=str(shards),
            targets_key=f"{task}.safetensors",
            seed=seed,
            max_tokens=12,
            global_batch_size=8,
        )
        for seed, task in enumerate(USED)
    }
    defaults = {
        "training": TrainingConfig(
            total_steps=steps,
            global_batch_size=8,
            gradient_accumulation_steps=accumulation,
            precision=precision,
            gradient_clipping=1.0,
        ),
        "engine": EngineConfig(deepspeed_config=stage),
    }
    return dataclasses.replace(
        base,
        name=name,
        model=tiny_model(),
        codebook_weights=None,
        objectives=USED,
        data=dataclasses.replace(base.data, sources=sources),
        **(defaults | settings),
    )


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path):
    """Micro-batches and ranks have different numbers of objects, and steps have different tasks."""
    make = functools.partial(run_config, tmp_path)
    runs = [(make("one", accumulation=2), 1), (make("zero1"), 2), (make("zero3", stage="zero3"), 2)]
    for config, ranks in runs:
        job = Job(config, ranks)
        assert job.wait() == [0] * ranks, job.said()[-2000:]
    expected, *others = (
        [[record.get(f"loss/{name}") for name in USED] for record in steps_of(config.run_path)]
        for config, _ in runs
    )
    assert {sum(own is not None for own in step) for step in expected} == {1}
    assert all(any(step[place] is not None for step in expected) for place in range(3))
    for found in others:
        for own, step in zip(found, expected, strict=True):
            assert [value is None for value in own] == [value is None for value in step]
            told = [value for value in step if value is not None]
            assert [value for value in own if value is not None] == pytest.approx(told, rel=2e-6)


@pytest.mark.distributed
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    config = run_config(
        tmp_path, "whole", steps=8, precision="bf16", checkpoint=CheckpointConfig(every_steps=4, keep_last=2)
    )
    again = dataclasses.replace(config, name="again")
    assert Job(config, 1).wait() == [0]
    shutil.copytree(config.run_path, again.run_path)
    checkpoints = sorted((again.run_path / "checkpoints").glob("step*"))
    shutil.rmtree(checkpoints[1])
    (again.run_path / "checkpoints" / "latest").write_text(f"{checkpoints[0].name}\n")
    job = Job(again, 1)
    assert job.wait() == [0], job.said()[-2000:]
    assert curve(again.run_path)[-4:] == curve(config.run_path)[-4:]
    ours, theirs = load_weights(config.run_path), load_weights(again.run_path)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
