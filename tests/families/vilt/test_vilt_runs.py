"""ViLT's recipes and batches, and ViLT through the real trainer: ranks, ZeRO stages, accumulation, a killed
run.
"""

import dataclasses
import json
import math
import signal

import numpy as np
import pytest
import torch
from real_runs import Job, curve, real_config, steps_of

from flava_ds import config as configuration
from flava_ds.checkpoints.reader import load_weights
from flava_ds.config import EngineConfig, TrainingConfig, from_dict, to_dict
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.reader import BatchReader
from flava_ds.families.vilt.config import StreamConfig, ViltConfig, WordsConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig
from flava_ds.recipes import RECIPES
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.synthetic import batch_of

STEPS = 6
NAMES = ("mmm_text", "itm", "wpa")


@pytest.mark.parametrize("recipe", ["vilt_base", "demo_vilt"])
def test_recipes_are_sound_and_survive_json(recipe):
    config = configuration.check(RECIPES[recipe]())
    again = from_dict(type(config), json.loads(json.dumps(to_dict(config))))
    assert again == config and isinstance(again.model, ViltConfig)


def test_the_planner_sees_both_passes():
    config = RECIPES["demo_vilt"]()
    plan = config.model.plan(config, config.data.sources["pair"])
    batch = batch_of(plan, "pair", lengths_of(config, None)["pair"], 6)
    assert torch.equal(batch["matching_cu_seqlens"], batch["cu_seqlens"])
    work = {part.name: part.flops for part in config.model.build(config).passes(batch)}
    assert 1 < work["multimodal"] / work["multimodal_masked"] < 1.2, "one has all rows read"
    assert work["itm"] == 6 * 2 * 192 * 194


def vilt_config(folder, name: str, stage: str = "zero1", accumulation: int = 1, steps: int = STEPS):
    """A tiny ViLT with dropout over the pairs of the written world, in fp32."""
    config = real_config(folder)
    image = StreamConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=28,
        hidden_dropout=0.1,
    )
    source = dataclasses.replace(config.data.sources["pair"], weight=1.0)
    return dataclasses.replace(
        config,
        name=name,
        model=ViltConfig(image=image, text=WordsConfig(vocab_size=200, max_position_embeddings=20)),
        codebook_weights=None,
        objectives={
            "mmm_text": MultimodalMaskedTextConfig(tied_decoder=True),
            "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
            "wpa": WordPatchAlignmentConfig(weight=0.1),
        },
        data=dataclasses.replace(config.data, sources={"pair": source}),
        training=TrainingConfig(
            total_steps=steps,
            global_batch_size=8,
            gradient_accumulation_steps=accumulation,
            precision="fp32",
            gradient_clipping=1.0,
        ),
        engine=EngineConfig(deepspeed_config=stage),
    )


def texts(batch, prefix: str = "") -> list[list[int]]:
    lengths = batch[f"{prefix}cu_seqlens"].diff().tolist()
    return [own.tolist() for own in batch[f"{prefix}input_ids"].split(lengths)]


def test_every_split_of_a_batch_has_the_same_texts_and_only_mismatches_have_others(tmp_path):
    """A sample's own text is masked and predicted in any case; half of the second texts are others'."""
    config = vilt_config(tmp_path, "x")
    reader = BatchReader(config, IndexedShards(config, "pair"))
    whole = reader.batch(np.arange(8, 16))
    parts = [reader.batch(np.arange(start, start + 2)) for start in range(8, 16, 2)]
    own, matching, matched = texts(whole), texts(whole, "matching_"), whole["itm_labels"].tolist()
    assert [text for part in parts for text in texts(part)] == own
    assert [text for part in parts for text in texts(part, "matching_")] == matching
    assert [label for part in parts for label in part["itm_labels"].tolist()] == matched
    assert [one == other for one, other in zip(own, matching, strict=True)] == [bool(own) for own in matched]
    assert 0 < sum(matched) < 8 and all(text in own for text in matching)
    sample = torch.repeat_interleave(torch.arange(8), whole["cu_seqlens"].diff().long())
    assert set(sample[whole["mlm_rows"]].tolist()) == set(range(8))
    assert whole["wpa_rows"].shape[0] == sum(map(len, matching)) - 16
    assert whole.numbers["matching_max_seqlen"] == max(map(len, matching))


def losses(config) -> list[float]:
    return [record[f"loss/{name}"] for record in steps_of(config.run_path) for name in NAMES]


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path, told):
    configs = [(vilt_config(tmp_path, "one", accumulation=2), 1)]
    configs += [(vilt_config(tmp_path, stage, stage), 2) for stage in ("zero1", "zero3")]
    for config, ranks in configs:
        job = Job(config, ranks)
        assert job.wait() == [0] * ranks, job.said()[-2000:]
    expected = losses(configs[0][0])
    assert len(expected) == 3 * STEPS and len(set(expected)) == 3 * STEPS
    assert expected[0] == pytest.approx(math.log(200), abs=0.2)
    assert expected[1] == pytest.approx(math.log(2), abs=0.2)
    for config, _ in configs[1:]:
        assert losses(config) == pytest.approx(expected, rel=1e-6, abs=1e-7), config.name
        told.split("vilt", f"2 ranks, {config.name}", losses(config), expected, 1e-6)


@pytest.mark.distributed
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    whole, killed = (vilt_config(tmp_path, name, "zero1", steps=12) for name in ("whole", "killed"))
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
