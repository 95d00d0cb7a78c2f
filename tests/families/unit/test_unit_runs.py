"""UniT's batches, and UniT through the real trainer: ranks, accumulation, tasks in turn."""

import dataclasses

import numpy as np
import pytest
import torch
from data.shard_files import caption, write_tar
from families.unit.unit_toys import ATTRIBUTES, CLASSES, OBJECTIVES, source_of, tiny_model
from real_runs import check_losses_of_every_split, family_config, steps_of
from safetensors.numpy import save
from torchvision.io import encode_png

from flava_ds.families.unit.config import UnitConfig
from flava_ds.recipes import RECIPES
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.measure import META
from flava_ds.scaling.synthetic import batch_of

USED = {name: OBJECTIVES[name] for name in ("detection", "question", "entailment")}
USED["detection"] = dataclasses.replace(USED["detection"], num_attributes=ATTRIBUTES, max_attributes=3)


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
            "detection": {
                "labels": draw.integers(0, CLASSES, count),
                "boxes": boxes,
                "attributes": draw.integers(-1, ATTRIBUTES, (count, 2)),
            },
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


def dropping(model: UnitConfig) -> UnitConfig:
    """The same model with dropout in every part."""
    parts = {
        name: dataclasses.replace(getattr(model, name), hidden_dropout=0.1)
        for name in ("encoder", "text", "decoder")
    }
    return dataclasses.replace(model, **parts)


def run_config(folder, name, **how):
    """Six steps of three tasks in turn."""
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
    config = family_config(folder, name, "pair", model=dropping(tiny_model()), objectives=USED, **how)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))


@pytest.mark.distributed
def test_ranks_zero_3_and_accumulation_give_the_same_losses(tmp_path, told):
    """Micro-batches and ranks have different numbers of objects, and steps have different tasks. The ghost
    norms enlarge rounding.
    """
    one, two = (
        run_config(tmp_path, "one", accumulation=2),
        run_config(tmp_path, "two", stage="zero3"),
    )
    check_losses_of_every_split([(one, [two])], told, rel=1e-5)
    steps = steps_of(one.run_path)
    trained = [[name for name in USED if f"loss/{name}" in record] for record in steps]
    assert [len(names) for names in trained] == [1] * 6 and set().union(*trained) == USED.keys()
    detected = [step for step in steps if "loss/detection" in step]
    assert all(step["metric/attribute_loss/detection"] > 0 for step in detected) and detected
