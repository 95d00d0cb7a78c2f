"""What a run says of itself beforehand, against numbers counted by hand."""

import dataclasses

import pytest
import torch

from flava_ds.preview import (
    bytes_of_activations,
    bytes_of_state,
    meta_task,
    own_batches,
    parameters,
    rounded_sums,
    unfollowed,
    unused_evaluation,
)
from flava_ds.recipes import resolve


@pytest.fixture(scope="module")
def task():
    """flava_tiny without weights."""
    return meta_task(resolve("flava_tiny", []))


def test_a_model_without_weights_has_the_shapes_of_one_with(task):
    config = resolve("flava_tiny", [])
    real = config.model.build(config)
    assert all(parameter.is_meta for parameter in task.parameters())
    assert {n: p.shape for n, p in task.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }


@pytest.mark.parametrize(
    ("words", "stage", "ranks", "bytes_each"),
    [
        ([], 0, 4, 2 + 2 + 4 + 8),  # bf16 weights and gradients, fp32 weights, two moments
        ([], 1, 4, 2 + 2 + (4 + 8) / 4),
        ([], 2, 4, 2 + (2 + 4 + 8) / 4),
        ([], 3, 4, (2 + 2 + 4 + 8) / 4),
        (["--training.precision", "fp32"], 0, 1, 4 + 4 + 8),
        (["--optimizer", "lion"], 1, 1, 2 + 2 + 4 + 4),
    ],
)
def test_state_follows_the_zero_stage(task, words, stage, ranks, bytes_each):
    numel = sum(parameter.numel() for parameter in task.parameters())
    assert bytes_of_state(resolve("flava_tiny", words), task, ranks, stage) == numel * bytes_each


def test_activations_of_a_pair_by_hand(task):
    config, values = resolve("flava_tiny", []), 8 * 192 + 2 * 768
    # two views of 50 image tokens and 77 text tokens, one fused sequence of 128; bf16
    rows = 2 * 50 * 4 + 2 * 77 * 3 + 128 * 2
    assert bytes_of_activations(config, task, "pairs", 2, "cuda") == 32 * 2 * values * rows
    half = config.with_sources({"pairs": dataclasses.replace(config.data.sources["pairs"], masked_share=0.5)})
    rows = 1.5 * 50 * 4 + 1.5 * 77 * 3 + 0.5 * 128 * 2
    assert bytes_of_activations(half, task, "pairs", 2, "cuda") == 32 * 2 * values * rows


def test_recomputed_activations_keep_the_inputs_of_the_blocks(task):
    config = resolve("flava_tiny", ["--training.activation-checkpointing"])
    rows = 2 * 50 * 4 + 2 * 77 * 3 + 128 * 2
    assert bytes_of_activations(config, task, "pairs", 1, "cpu") == 64 * 2 * 192 * rows


def test_a_family_of_two_towers_has_no_masked_passes():
    config = resolve("clip_base", ["--training.global-batch-size", "8"])
    assert config.training.activation_checkpointing  # the inputs of 12 blocks, in bf16
    expected = 8 * 2 * 12 * (197 * 768 + 77 * 512)
    assert bytes_of_activations(config, meta_task(config), "pairs", 1, "cuda") == expected
    half = resolve("clip_base", ["--training.global-batch-size", "8", "--model.image.patch-dropout", "0.5"])
    expected = 8 * 2 * 12 * (99 * 768 + 77 * 512)
    assert bytes_of_activations(half, meta_task(half), "pairs", 1, "cuda") == expected


def test_parameters_that_no_objective_trains_are_named(monkeypatch):
    task = meta_task(resolve("demo_clip", []))
    assert "nothing trains" not in parameters(task, {"pair"})
    objective, text = task.objectives["global_contrastive"], "text_encoder."
    used = {name for name in objective.model_parameters(task.model) if not name.startswith(text)}
    monkeypatch.setattr(type(objective), "model_parameters", lambda self, model: used - {"logit_scale"})
    count = sum(own.numel() for name, own in task.model.named_parameters() if name.startswith(text))
    size = f"{count / 1e6:.1f} M"
    assert parameters(task, {"pair"}).endswith(
        f"; of these nothing trains {size} (text_encoder {size}, logit_scale 1)"
    )


def test_heads_that_no_drawn_source_feeds_are_named(task):
    assert "nothing trains" not in parameters(task, {"image", "text", "pair"})
    told = parameters(task, {"image"}).partition("; of these nothing trains ")[2]
    assert "text_encoder" in told and "head of mlm" in told and "head of itm" in told
    assert "image_encoder" not in told and "head of mim" not in told


def test_a_batch_size_that_no_source_takes_is_named():
    asked = ["--training.global-batch-size", "16"]
    assert own_batches(resolve("demo_vilt", asked)) == (
        "; training.global_batch_size 16 has no effect, as every source has its own: "
        "--data.sources.pair.global-batch-size 64"
    )
    assert own_batches(resolve("demo_bert", asked)) == own_batches(resolve("flava_debug", [])) == ""


def test_sources_that_keep_their_own_batch_size_are_named():
    asked = ["--training.global-batch-size", "32", "--data.sources.pair.global-batch-size", "None"]
    assert own_batches(resolve("flava_debug", asked)) == (
        "; not all take training.global_batch_size 32, some keep their own: "
        "--data.sources.image.global-batch-size 16, --data.sources.text.global-batch-size 16"
    )


def test_evaluations_that_nothing_runs_are_named():
    shown = "evaluation: none during training, as evaluation.every_steps is 0; the tasks are not run"
    assert unused_evaluation(resolve("demo_dino", ["--evaluation.every-steps", "0"])) == [shown]
    assert unused_evaluation(resolve("demo_dino", [])) == unused_evaluation(resolve("demo", [])) == []


def test_settings_that_nothing_in_the_model_follows_are_named(task):
    words = [
        f"--training.{name}" for name in ("activation-checkpointing", "recompute-gelu", "compile-blocks")
    ]
    config = resolve("flava_tiny", words)
    assert unfollowed(config, meta_task(config)) == []
    told = unfollowed(config, torch.nn.Linear(1, 1))
    assert [line.split(":")[0] for line in told] == [
        "training.activation_checkpointing",
        "training.recompute_gelu",
        "training.compile_blocks",
    ]
    assert unfollowed(resolve("flava_tiny", []), torch.nn.Linear(1, 1)) == []


def test_more_micro_batches_than_bf16_adds_up_are_named():
    def told(count, precision, *more):
        words = ["--training.gradient-accumulation-steps", str(count), "--training.precision", precision]
        return rounded_sums(resolve("flava_base", [*words, *more]))

    (line,) = told(256, "bf16")
    assert "256 micro-batches' gradients are added up in bf16" in line
    assert told(128, "bf16") == told(256, "fp32") == told(256, "bf16", "--training.accumulate-in-fp32") == []
