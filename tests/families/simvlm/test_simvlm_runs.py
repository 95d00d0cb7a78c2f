"""SimVLM's batches, and SimVLM through the real trainer: ranks, stages, accumulation, resume."""

import dataclasses
import functools
import shutil

import pytest
import torch
from families.simvlm.simvlm_toys import OBJECTIVES, tiny_model
from real_runs import Job, check_losses_of_every_split, curve, every_stage, family_config, real_config

from flava_ds.checkpoints.reader import load_weights
from flava_ds.config import CheckpointConfig
from flava_ds.families.simvlm.config import SidesConfig
from flava_ds.recipes import RECIPES
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.synthetic import batch_of

MODEL = tiny_model(text=SidesConfig(vocab_size=200, max_position_embeddings=20))


def test_the_planner_reads_images_of_pairs_alone():
    config = RECIPES["demo_simvlm"]()
    work = {}
    for kind in ("pair", "text"):
        plan = config.model.plan(config, config.data.sources[kind])
        batch = batch_of(plan, kind, lengths_of(config, None)[kind], 16)
        assert ("pixel_values" in batch) == (kind == "pair")
        work[kind] = {part.name for part in config.model.build(config).passes(batch)}
    assert work["pair"] - work["text"] == {"image_tower", "projection"}


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path, told):
    objectives = {"prefix_lm": OBJECTIVES["prefix_lm"]}
    make = functools.partial(family_config, tmp_path, kind="pair", model=MODEL, objectives=objectives)
    check_losses_of_every_split(every_stage(make), told)
    one, *others = [load_weights(tmp_path / "runs" / name) for name in ("one", "zero0", "zero3")]
    running = [name for name in one if "running" in name]
    assert len(running) == 18
    for weights in others:
        for name in running:
            assert one[name].dtype == torch.float32 and float(one[name].std()) > 0
            torch.testing.assert_close(weights[name], one[name], rtol=1e-5, atol=1e-6)


@pytest.mark.distributed
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    """Steps of pairs and of texts, in bf16, whose running moments stay in fp32."""
    base = real_config(tmp_path)
    sources = {name: base.data.sources[name] for name in ("pair", "text")}
    config = dataclasses.replace(
        base,
        name="whole",
        model=MODEL,
        codebook_weights=None,
        objectives=OBJECTIVES,
        data=dataclasses.replace(base.data, sources=sources),
        training=dataclasses.replace(base.training, total_steps=8, gradient_accumulation_steps=1),
        checkpoint=CheckpointConfig(every_steps=4, keep_last=2),
    )
    again = dataclasses.replace(config, name="again")
    assert Job(config, 1).wait() == [0]
    shutil.copytree(config.run_path, again.run_path)
    checkpoints = sorted((again.run_path / "checkpoints").glob("step*"))
    assert len(checkpoints) == 2
    shutil.rmtree(checkpoints[1])
    (again.run_path / "checkpoints" / "latest").write_text(f"{checkpoints[0].name}\n")
    job = Job(again, 1)
    assert job.wait() == [0], job.said()[-2000:]
    records, resumed = curve(config.run_path), curve(again.run_path)
    assert {record["kind"] for record in records[4:]} == {"pair", "text"}
    assert resumed[-4:] == records[-4:]
    ours, theirs = load_weights(config.run_path), load_weights(again.run_path)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
