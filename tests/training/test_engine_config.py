"""The JSON of the engine: what it may set, what the recipe owns, and what is refused in one line."""

import json

import pytest
import torch
from toy import toy_config

from flava_ds.errors import ConfigError
from flava_ds.recipes import resolve
from flava_ds.training.engine_config import SILENT, merged_settings, shipped_settings


def settings_of(folder, content, **training):
    """Merges a hand-written JSON for two ranks on CPU."""
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return merged_settings(toy_config(str(path), **training), 2, "cpu")


@pytest.mark.parametrize(
    "name",
    [
        "zero0",
        "zero1",
        "zero2",
        "zero3",
        "zero1_no_overlap",
        "zero1_offload",
        "zero2_offload",
        "zero3_offload",
    ],
)
def test_shipped_files_pass_and_always_carry_clipping(name):
    assert name in shipped_settings()
    settings = merged_settings(toy_config(name, gradient_accumulation_steps=2), 2, "cpu")
    assert settings["zero_optimization"]["stage"] == int(name[4])
    assert settings["gradient_clipping"] == 0.0  # never DeepSpeed's default of 1.0; the engine clips
    assert (settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]) == (2, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"zero_optimisation": {"stage": 2}},
            ["unknown key 'zero_optimisation'", "did you mean 'zero_optimization'"],
        ),
        (
            {"gradient_cliping": 1.0, "zero_optimization": {"stage": 1}},
            ["unknown key 'gradient_cliping'", "did you mean 'gradient_clipping'"],
        ),
        (
            {"gradient_clipping": 1.0, "zero_optimization": {"stage": 1}},
            ["'gradient_clipping' belongs to the recipe", "training.gradient_clipping"],
        ),
        ({"train_batch_size": 8, "zero_optimization": {"stage": 1}}, ["training.global_batch_size"]),
        ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}, ["training.precision"]),
        ({"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 1}}, ["optimizer NAME"]),
        ({"scheduler": {}, "zero_optimization": {"stage": 1}}, ["schedule.warmup_steps"]),
        *(
            ({key: True, "zero_optimization": {"stage": 1}}, [f"'{key}'", "--logging.profile-steps"])
            for key in sorted(SILENT)
        ),
        ({}, ["explicit", "stage"]),
        ({"zero_optimization": True}, ["explicit", "stage"]),
        ({"zero_optimization": {"stage": "2"}}, ["explicit", "stage"]),
        ({"zero_optimization": {"stage": 7}}, ["zero_optimization.stage"]),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_sise": 5}},
            ["reduce_bucket_sise", "did you mean 'reduce_bucket_size'"],
        ),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": -5}},
            ["zero_optimization.reduce_bucket_size"],
        ),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            ["offloading needs ZeRO stage 1"],
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            ["offload_param", "nvme", 'use "cpu"'],
        ),
        (
            {"zero_optimization": {"stage": 1, "round_robin_gradients": True}},
            ["round_robin_gradients", "remove it"],
        ),
        (
            {"zero_optimization": {"stage": 2}, "prescale_gradients": True},
            ["'prescale_gradients'", "reduce_scatter false"],
        ),
        (
            {"zero_optimization": {"stage": 2}, "gradient_predivide_factor": 2.0},
            ["'gradient_predivide_factor'", "reduce_scatter false"],
        ),
        (
            {"zero_optimization": {"stage": 3, "reduce_scatter": False}, "gradient_predivide_factor": 2.0},
            ["'gradient_predivide_factor'", "stage 3"],
        ),
        (
            '{"zero_optimization": {"stage": 1}, "zero_optimization": {"stage": 2}}',
            ["'zero_optimization' occurs twice"],
        ),
        ('{"zero_optimization": ', ["mine.json"]),
        ("[1]", ["expected a JSON object"]),
    ],
)
def test_bad_files_are_refused_by_key(tmp_path, content, words):
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, content)
    assert all(word in str(caught.value) for word in [*words, "mine.json"]), caught.value


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_may_be_divided_before_where_deepspeed_multiplies_them_again(tmp_path, stage):
    zero = {"stage": stage, "reduce_scatter": False}
    given = {"zero_optimization": zero, "prescale_gradients": False, "gradient_predivide_factor": 2.0}
    assert settings_of(tmp_path, given)["gradient_predivide_factor"] == 2.0


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'zero2'"):
        merged_settings(toy_config("zro2"), 1, "cpu")


def test_precisions_that_would_go_wrong_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="use stage 1"):
        merged_settings(toy_config("zero0", precision="bf16"), 1, "cpu")
    with pytest.raises(ConfigError, match="fp16.*does not run on a CPU"):
        merged_settings(toy_config("zero1", precision="fp16"), 1, "cpu")
    assert merged_settings(toy_config("zero1", precision="fp16"), 1, "cuda")["fp16"] == {"enabled": True}
    assert merged_settings(toy_config("zero1", precision="bf16"), 1, "cpu")["bf16"]["enabled"]


def test_every_kind_of_step_of_the_base_model_fills_several_buckets():
    """A bucket is reduced when it is full; gradients that fill none travel after the backward pass."""
    config = resolve("flava_base", [])
    with torch.device("meta"):
        task = config.model.build(config)
    users, sizes = task.users(), {name: p.numel() for name, p in task.named_parameters() if p.requires_grad}
    for name in ("zero1", "zero2", "zero3"):
        bucket = merged_settings(toy_config(name), 2, "cpu")["zero_optimization"]["reduce_bucket_size"]
        assert max(sizes.values()) <= bucket
        for kind in task.kinds:
            elements = sum(size for own, size in sizes.items() if kind in users[own])
            assert elements // bucket >= (3 if name != "zero3" else 1), (name, kind)
