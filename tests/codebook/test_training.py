"""The codebook's trainer: schedules, determinism, learning, files."""

import dataclasses
import json
import math
import time

import numpy as np
import pytest
import torch
from data.shard_files import encode, write_tar

from flava_ds.codebook.config import (
    SMALL,
    CodebookTrainingConfig,
    kl_weight_at,
    learning_rate_at,
    temperature_at,
)
from flava_ds.codebook.image_codebook import load_codebook
from flava_ds.codebook.trainer import CodebookTrainer
from flava_ds.codebook.training import train_codebook
from flava_ds.config import UNCHANGED, CodebookConfig, Config, SourceConfig
from flava_ds.errors import CheckpointError, ConfigError

CODEBOOK = CodebookConfig(
    hidden_size=16, num_groups=3, num_blocks_per_group=1, vocab_size=32, image_size=16, decoder_init_size=16
)
SHORT = dataclasses.replace(SMALL, total_steps=160, batch_size=16, lr=5e-3, eval_samples=20, log_every=80)


@pytest.fixture
def config() -> Config:
    return Config(name="test", codebook=CODEBOOK)


@pytest.fixture
def sources(tmp_path) -> dict[str, SourceConfig]:
    """Black and white cells, one for each code, drawn at random."""
    draw = np.random.default_rng(0)
    pixels = draw.choice([20, 240], (240, 4, 4, 1)).repeat(4, 1).repeat(4, 2).repeat(3, 3).astype(np.uint8)
    write_tar(
        tmp_path / "shapes.tar",
        [(f"{number:04d}.webp", encode(image)) for number, image in enumerate(pixels)],
    )
    return {"shapes": SourceConfig(kind="image", shards=str(tmp_path / "shapes.tar"), transform=UNCHANGED)}


def test_published_schedules():
    published = CodebookTrainingConfig()
    total = published.total_steps
    assert (temperature_at(published, 0, total), temperature_at(published, 150_000, total)) == (1.0, 1 / 16)
    assert temperature_at(published, 75_000, total) == pytest.approx((1 + 1 / 16) / 2)
    assert (
        kl_weight_at(published, 0, total),
        kl_weight_at(published, 5_000, total),
        kl_weight_at(published, total, total),
    ) == (0.0, 6.6, 6.6)
    assert kl_weight_at(published, 2_500, total) == pytest.approx(3.3)
    assert (learning_rate_at(published, 0, total), learning_rate_at(published, 1_200_000, total)) == (
        1e-4,
        1.25e-6,
    )
    assert published.usage_weight == 0 and published.embedding_std is None and published.ema_decay == 0.999
    assert (published.batch_size, published.betas, published.eps, published.weight_decay) == (
        512,
        (0.9, 0.999),
        1e-8,
        1e-4,
    )


def test_schedules_scale_with_the_length():
    for total in (100, 10_000):
        assert temperature_at(SMALL, int(total * SMALL.temperature_share), total) == pytest.approx(
            SMALL.min_temperature
        )
        assert learning_rate_at(SMALL, total, total) == pytest.approx(SMALL.min_lr)
        rates = [learning_rate_at(SMALL, step, total) for step in range(total)]
        assert max(rates) <= SMALL.lr and all(rate > 0 for rate in rates)


def test_training_learns_writes_and_reports(config, sources, tmp_path):
    reports = []
    out = tmp_path / "run" / "codebook.safetensors"
    last = train_codebook(config, sources, out, training=SHORT, on_report=reports.append)
    assert [report.step for report in reports] == [80, 160] and reports[-1] == last
    assert last.mse < 0.25 * last.mean_color_mse, last
    assert 1.9 < last.perplexity <= last.used_codes <= 32, "black and white need two codes"
    loaded = load_codebook(out, CODEBOOK)
    assert loaded.decoder is not None
    summary = json.loads(out.with_suffix(".json").read_text())
    assert (
        summary["report"]["mse"] == last.mse
        and summary["training"]["total_steps"] == 160
        and summary["seed"] == config.seed
    )
    assert [point["step"] for point in summary["curve"]] == [80, 160] and summary["curve"][-1][
        "mse"
    ] == last.mse
    assert summary["codebook"]["vocab_size"] == 32 and summary["sources"]["shapes"]["kind"] == "image"


def test_baselines_are_those_of_constant_colours(config, sources, tmp_path):
    """Two equally likely levels: one colour leaves their variance; one per image leaves 15/16 of it on
    average.
    """
    report = train_codebook(
        config, sources, tmp_path / "c.safetensors", training=dataclasses.replace(SHORT, total_steps=1)
    )
    variance = np.var([20 / 255, 240 / 255])
    assert report.mean_color_mse == pytest.approx(variance, rel=0.1)
    assert report.image_mean_mse == pytest.approx(variance * 15 / 16, rel=0.1)


def test_the_same_seed_gives_the_same_weights(config, sources, tmp_path):
    training = dataclasses.replace(SHORT, total_steps=3, ema_decay=0.9)
    torch.manual_seed(1)
    train_codebook(config, sources, tmp_path / "a.safetensors", training=training)
    torch.manual_seed(2)
    train_codebook(config, sources, tmp_path / "b.safetensors", training=training)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    train_codebook(
        dataclasses.replace(config, seed=1), sources, tmp_path / "c.safetensors", training=training
    )
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "c.safetensors").read_bytes()


def test_the_average_follows_the_weights(config):
    trainer = CodebookTrainer(config, dataclasses.replace(SHORT, ema_decay=0.5), torch.device("cpu"))
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    expected = trainer.codebook.encoder.output.bias.detach().clone()
    for step in range(3):
        trainer.step(step, pixels)
        decay = min(0.5, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * trainer.codebook.encoder.output.bias.detach()
    torch.testing.assert_close(trainer.average.encoder.output.bias, expected)


def test_bf16_and_fp32_agree(config):
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = CodebookTrainer(
            config, dataclasses.replace(SHORT, precision=precision), torch.device("cpu")
        )
        losses[precision] = trainer.step(
            5, torch.arange(8 * 3 * 16 * 16).view(8, 3, 16, 16).to(torch.uint8)
        ).total.item()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02) and losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize(
    "change",
    [
        {"total_steps": 0},
        {"max_seconds": -1.0},
        {"max_seconds": math.inf},
        {"min_temperature": 0.0},
        {"min_temperature": 2.0},
        {"temperature": math.inf},
        {"precision": "fp8"},
        {"log_every": 0},
        {"batch_size": 0},
        {"lr": math.nan},
        {"usage_weight": -1.0},
        {"kl_share": 2.0},
        {"betas": (1.0, 1.0)},
        {"ema_decay": 3.0},
        {"embedding_std": 0.0},
    ],
)
def test_settings_that_cannot_work(config, change):
    with pytest.raises(ConfigError, match=f"codebook training: {next(iter(change))} "):
        CodebookTrainer(config, dataclasses.replace(SHORT, **change), torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("codebook.json", "ends in"),
        ("codebook", "ends in"),
        ("taken.safetensors", "folder"),
        ("file/codebook.safetensors", "cannot be written"),
    ],
)
def test_a_result_without_a_place_ends_it_before_the_training(config, sources, tmp_path, name, said):
    (tmp_path / "taken.safetensors").mkdir()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match=f"{name}: .*{said}"):
        train_codebook(
            config,
            sources,
            tmp_path / name,
            training=SHORT,
            on_report=lambda report: pytest.fail("it was trained"),
        )


def test_a_weak_codebook_is_said_to_be_weak(config, sources, tmp_path, caplog):
    report = train_codebook(
        config, sources, tmp_path / "c.safetensors", training=dataclasses.replace(SHORT, total_steps=1)
    )
    assert "the codebook is weak: " in caplog.text and "; train longer, or raise usage_" in caplog.text
    assert math.isfinite(report.mse)


def test_a_stopped_training_goes_on_exactly(config, sources, tmp_path):
    training = dataclasses.replace(SHORT, total_steps=7, ema_decay=0.9, log_every=3)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train_codebook(config, sources, whole, training=training)
    asked, told = iter([False, True, False, False, True]), []
    settings = dict(training=training, tell=told.append, is_asked_to_stop=lambda: next(asked, False))
    for step in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            train_codebook(config, sources, parts, **settings)
        assert told[-1].startswith(
            f"stopped at step {step}/7; the same command goes on from {parts}.unfinished"
        )
        assert not parts.exists()
    with pytest.raises(
        CheckpointError, match="was begun with training.lr 0.005 instead of 0.1; give the same"
    ):
        other = dataclasses.replace(training, lr=0.1)
        train_codebook(config, sources, parts, training=other)
    train_codebook(config, sources, parts, **settings)
    assert "going on after step 5: " in told[-1]
    assert parts.read_bytes() == whole.read_bytes()
    curves = [json.loads(out.with_suffix(".json").read_text())["curve"] for out in (whole, parts)]
    assert curves[0] == curves[1] and [point["step"] for point in curves[0]] == [3, 6, 7]
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_result_is_kept_unless_the_same_call_made_it(config, sources, tmp_path):
    training, out, told = dataclasses.replace(SHORT, total_steps=2), tmp_path / "c.safetensors", []
    first = train_codebook(config, sources, out, training=training)
    made = out.stat()
    again = train_codebook(
        config, sources, out, training=dataclasses.replace(training, log_every=1), tell=told.append
    )
    assert again == first and out.stat() == made and "c.safetensors is finished: trained before" in told[-1]
    for change, said in (
        ({"lr": 0.1}, "made with training.lr 0.005 instead of 0.1; delete it, or give --out"),
        ({"max_seconds": 9.0}, "made with max_seconds None instead of 9.0;"),
    ):
        with pytest.raises(CheckpointError, match=said):
            train_codebook(config, sources, out, training=dataclasses.replace(training, **change))
    pixels = np.full((240, 16, 16, 3), 77, np.uint8)
    pixels[:, 0, 0] = np.arange(240)[:, None]
    write_tar(tmp_path / "shapes.tar", [(f"{n:04d}.webp", encode(image)) for n, image in enumerate(pixels)])
    with pytest.raises(CheckpointError, match="made with hash of their keys and sizes .* instead of"):
        train_codebook(config, sources, out, training=training)
    out.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match="c.json does not say how it was made; delete it"):
        train_codebook(config, sources, out, training=training)
    assert out.stat() == made


def test_states_are_written_on_the_way(config, sources, tmp_path):
    """A training that is killed has lost what came after its last state, and no more."""
    out, steps = tmp_path / "c.safetensors", []

    def killed() -> bool:
        steps.append(len(list(tmp_path.glob("*.unfinished"))))
        if len(steps) == 3:
            raise SystemError("killed")
        return False

    training, told = dataclasses.replace(SHORT, total_steps=4), []
    with pytest.raises(SystemError):
        train_codebook(config, sources, out, training=training, save_every_s=1e-9, is_asked_to_stop=killed)
    assert steps == [0, 1, 1]
    train_codebook(config, sources, out, training=training, tell=told.append)
    assert told[0].startswith("going on after step 2: ") and out.is_file()
    (tmp_path / "d.safetensors.unfinished").write_bytes(b"\x80junk")
    with pytest.raises(CheckpointError, match="no state of a codebook's training, or a damaged one; delete"):
        train_codebook(config, sources, tmp_path / "d.safetensors", training=training)


def test_a_limit_is_kept_whatever_the_speed(config, sources, tmp_path, monkeypatch):
    """On a machine that gets ten times slower on the way: by its own clock, with the files written."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    real, made = CodebookTrainer.step, []

    def step(self, number, pixels):
        nonlocal now
        made.append(number)
        now += 0.1 if len(made) < 60 else 1.0
        return real(self, number, pixels)

    def evaluate(self, pixels):
        nonlocal now
        now += 2.0
        return 0.01, 30.0, 32

    monkeypatch.setattr(CodebookTrainer, "step", step)
    monkeypatch.setattr(CodebookTrainer, "evaluate", evaluate)
    training = dataclasses.replace(SHORT, max_seconds=40.0, log_every=1000)
    now = 5.0  # of which five went by before the call
    report = train_codebook(config, sources, tmp_path / "c.safetensors", training=training, started=0.0)
    assert 30 < now <= 40 and report.step == report.total_steps == made[-1] + 1, (now, report)
    assert (tmp_path / "c.safetensors").is_file()
