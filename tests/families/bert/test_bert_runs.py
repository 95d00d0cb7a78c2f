"""BERT's recipes, and BERT through the real trainer: ranks, ZeRO stages, accumulation, and a killed run."""

import dataclasses
import json
import signal

import pytest
import torch
from real_runs import Job, curve, real_config, steps_of

from flava_ds import config as configuration
from flava_ds.checkpoints.reader import load_weights
from flava_ds.config import EngineConfig, TrainingConfig, from_dict, to_dict
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.bert.config import BertConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.objectives.next_sentence import NextSentenceConfig
from flava_ds.recipes import RECIPES
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.synthetic import batch_of

STEPS = 6
STAGES = ("zero0", "zero1", "zero2", "zero3")


@pytest.mark.parametrize("recipe", ["bert_base", "demo_bert"])
def test_recipes_are_sound_and_survive_json(recipe):
    config = configuration.check(RECIPES[recipe]())
    again = from_dict(type(config), json.loads(json.dumps(to_dict(config))))
    assert again == config and isinstance(again.model, BertConfig)


def test_the_planner_sees_two_segments_in_every_text():
    config = RECIPES["demo_bert"]()
    plan = config.model.plan(config, config.data.sources["text"])
    batch = batch_of(plan, "text", lengths_of(config, None)["text"], 6)
    halves = [int(own.sum()) for own in batch["token_types"].split(batch["cu_seqlens"].diff().tolist())]
    assert batch["nsp_samples"].tolist() == [*range(6)] and halves == [24] * 6
    work = {part.name: part.flops for part in config.model.build(config).passes(batch)}
    assert work["nsp"] == 6 * 2 * 256 * 258


def bert_config(folder, name: str, stage: str = "zero1", accumulation: int = 1, steps: int = STEPS):
    """A tiny BERT over the texts of the written world, in fp32."""
    config = real_config(folder)
    text = BertTextConfig(
        vocab_size=200,
        max_position_embeddings=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=28,
    )
    source = dataclasses.replace(config.data.sources["text"], weight=1.0)
    return dataclasses.replace(
        config,
        name=name,
        model=BertConfig(text=text),
        codebook_weights=None,
        objectives={
            "mlm": MaskedTextConfig(tied_decoder=True, mask_probability=0.4),
            "nsp": NextSentenceConfig(),
        },
        data=dataclasses.replace(config.data, sources={"text": source}),
        training=TrainingConfig(
            total_steps=steps,
            global_batch_size=8,
            gradient_accumulation_steps=accumulation,
            precision="fp32",
            gradient_clipping=1.0,
        ),
        engine=EngineConfig(deepspeed_config=stage),
    )


def losses(config) -> list[float]:
    return [record[f"loss/{name}"] for record in steps_of(config.run_path) for name in ("mlm", "nsp")]


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path):
    configs = [(bert_config(tmp_path, "one", accumulation=2), 1)]
    configs += [(bert_config(tmp_path, stage, stage), 2) for stage in STAGES]
    for config, ranks in configs:
        job = Job(config, ranks)
        assert job.wait() == [0] * ranks, job.said()[-2000:]
    expected = losses(configs[0][0])
    assert len(expected) == 2 * STEPS and len(set(expected)) == 2 * STEPS
    for config, _ in configs[1:]:
        assert losses(config) == pytest.approx(expected, rel=1e-6), config.name


@pytest.mark.distributed
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    whole, killed = (bert_config(tmp_path, name, "zero2", steps=12) for name in ("whole", "killed"))
    assert Job(whole).wait() == [0, 0]
    job = Job(killed)
    assert job.wait_until((killed.run_path / "checkpoints" / "latest").is_file)
    job.signal(signal.SIGKILL, 1)
    job.kill()
    assert len(steps_of(killed.run_path)) < 12
    assert Job(killed).wait() == [0, 0]
    last = {record["step"]: record for record in curve(killed.run_path)}
    assert [last[record["step"]] == record for record in curve(whole.run_path)] == [True] * 12
    ours, theirs = load_weights(whole.run_path), load_weights(killed.run_path)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
