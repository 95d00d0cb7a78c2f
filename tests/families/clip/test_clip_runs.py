"""CLIP through the real trainer: one rank and two, every ZeRO stage, accumulation, and a run killed in the
middle.
"""

import dataclasses
import signal

import pytest
import torch
from real_runs import Job, curve, real_config, steps_of

from flava_ds.checkpoints.reader import load_weights
from flava_ds.config import EngineConfig, TrainingConfig
from flava_ds.families.clip.config import ClipConfig, ImageTowerConfig, TextTowerConfig
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig

STEPS = 6


def clip_config(folder, name: str, stage: str = "zero1", accumulation: int = 1, steps: int = STEPS):
    """A tiny CLIP over the pairs of the written world, in fp32."""
    config = real_config(folder)
    image = ImageTowerConfig(
        image_size=24,
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
    )
    text = TextTowerConfig(
        vocab_size=200,
        max_position_embeddings=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=28,
    )
    pairs = {
        name: dataclasses.replace(source, weight=1.0)
        for name, source in config.data.sources.items()
        if source.kind == "pair"
    }
    return dataclasses.replace(
        config,
        name=name,
        model=ClipConfig(image=image, text=text, projection_dim=12),
        codebook_weights=None,
        objectives={"global_contrastive": GlobalContrastiveConfig()},
        data=dataclasses.replace(config.data, sources=pairs),
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
    return [record["loss/global_contrastive"] for record in steps_of(config.run_path)]


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path):
    configs = [(clip_config(tmp_path, "one", accumulation=2), 1)]
    configs += [(clip_config(tmp_path, stage, stage), 2) for stage in ("zero0", "zero1", "zero2", "zero3")]
    for config, ranks in configs:
        assert Job(config, ranks).wait() == [0] * ranks, config.name
    expected = losses(configs[0][0])
    assert len(expected) == STEPS and len(set(expected)) == STEPS
    for config, _ in configs[1:]:
        assert losses(config) == pytest.approx(expected, rel=1e-6), config.name


@pytest.mark.distributed
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    whole, killed = (clip_config(tmp_path, name, "zero2", steps=20) for name in ("whole", "killed"))
    assert Job(whole).wait() == [0, 0]
    job = Job(killed)
    assert job.wait_until((killed.run_path / "checkpoints" / "latest").is_file)
    job.signal(signal.SIGKILL, 1)
    job.kill()
    assert len(steps_of(killed.run_path)) < 20
    assert Job(killed).wait() == [0, 0]
    last = {record["step"]: record for record in curve(killed.run_path)}
    assert [last[record["step"]] == record for record in curve(whole.run_path)] == [True] * 20
    ours, theirs = load_weights(whole.run_path), load_weights(killed.run_path)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
