"""Bounds of the real tree: what was taken before and meant nothing is refused by name; recipes and defaults
pass.
"""

import dataclasses
import math

import pytest

from flava_ds.config import (
    CheckpointConfig,
    CodebookConfig,
    Config,
    CosineScheduleConfig,
    EngineConfig,
    LoggingConfig,
    TrainingConfig,
    check,
    from_dict,
    load,
    to_dict,
)
from flava_ds.config.bounds import check_bounds
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.errors import ConfigError
from flava_ds.families.flava.config import FlavaConfig, flava_objectives
from flava_ds.objectives.masked_image import MaskedImageConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.objectives.simdino import SimdinoConfig
from flava_ds.optimizers.adamw import AdamWConfig
from flava_ds.recipes import RECIPES


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_keep_their_bounds(name):
    check_bounds(RECIPES[name]())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": AdamWConfig(lr=1e300)}, "optimizer.lr is 1e+300; it must be at most 10"),
        (
            {"optimizer": AdamWConfig(weight_decay=math.inf)},
            "optimizer.weight_decay is inf; it must be at most 100",
        ),
        ({"optimizer": AdamWConfig(lr="3e-4")}, "optimizer.lr is '3e-4'; expected float"),
        ({"optimizer": AdamWConfig(betas=(0.9,))}, "optimizer.betas is (0.9,); expected 2 values"),
        (
            {"optimizer": AdamWConfig(lr=1e-3), "schedule": CosineScheduleConfig(warmup_steps=5, min_lr=0.1)},
            "schedule.min_lr 0.1 exceeds optimizer.lr 0.001",
        ),
        (
            {"training": TrainingConfig(total_steps=10**20)},
            "training.total_steps is 100000000000000000000; it must be at most 10**9",
        ),
        (
            {"training": TrainingConfig(global_batch_size=-4)},
            "training.global_batch_size is -4; it must be at least 1",
        ),
        (
            {"training": TrainingConfig(spike_factor=math.nan)},
            "training.spike_factor is nan; it must be at least 0",
        ),
        (
            {"training": TrainingConfig(spike_factor=0.5)},
            "training.spike_factor 0.5: a usual loss would be a spike; give a factor above 1",
        ),
        (
            {"training": TrainingConfig(spike_factor=5.0), "objectives": {"views": SimdinoConfig()}},
            "by their ratio, but objectives.views may be negative; leave it out with --training.spike-factor",
        ),
        (
            {"training": TrainingConfig(precision="fp8")},
            "training.precision is 'fp8'; choose one of 'fp32', 'bf16', 'fp16'",
        ),
        (
            {"engine": EngineConfig(communication_timeout_s=10**13)},
            "engine.communication_timeout_s is 10000000000000; it must be at most 604800",
        ),
        (
            {"checkpoint": CheckpointConfig(every_minutes=math.nan)},
            "checkpoint.every_minutes is nan; it must be at least 0",
        ),
        ({"checkpoint": CheckpointConfig(keep_last=0)}, "checkpoint.keep_last is 0; it must be at least 1"),
        (
            {"logging": LoggingConfig(profile_steps=(20, 10**11))},
            "logging.profile_steps is (20, 100000000000); number 2 must be at most 1000",
        ),
        (
            {"logging": LoggingConfig(profile_steps=(20, 0))},
            "logging.profile_steps is (20, 0); number 2 must be at least 1",
        ),
        (
            {"logging": LoggingConfig(memory_snapshot_step=-1)},
            "logging.memory_snapshot_step is -1; it must be at least 0",
        ),
        ({"codebook": CodebookConfig(vocab_size=0)}, "codebook.vocab_size is 0; it must be at least 1"),
        ({"codebook": CodebookConfig(num_groups=64)}, "codebook.num_groups is 64; it must be at most 10"),
        (
            {"model": FlavaConfig(image=VisionEncoderConfig(image_mean=(0.5, math.inf, 0.5)))},
            "each must lie between 0 and 1",
        ),
        (
            {"model": FlavaConfig(image=VisionEncoderConfig(image_std=(0.5, math.nan, 0.5)))},
            "each must be above 0",
        ),
        (
            {"model": FlavaConfig(image=VisionEncoderConfig(hidden_size=10**9))},
            "model.image.hidden_size is 1000000000; it must be at most 2**17",
        ),
        (
            {"model": FlavaConfig(logit_scale_init=math.nan)},
            "model.logit_scale_init is nan; it must be at least 0",
        ),
        (
            {"objectives": flava_objectives(mim=MaskedImageConfig(weight=math.inf))},
            "objectives.mim.weight is inf; it must be at most 10**6",
        ),
        (
            {"objectives": flava_objectives(mlm=MaskedTextConfig(mask_probability=math.nan))},
            "mlm.mask_probability is nan; it must lie between 0 and 1",
        ),
        (
            {"objectives": flava_objectives(mim=MaskedImageConfig(attempts_per_block=10**9))},
            "attempts_per_block is 1000000000; it must be at most 10000",
        ),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"seed": 2**32}, "seed is 4294967296; it must be below 2**32"),
        ({"seed": 1.0}, "seed is 1.0; expected int"),
    ],
)
def test_nonsense_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError) as caught:
        check(dataclasses.replace(RECIPES["flava_debug"](), **changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda words: words["optimizer"].update(betas=[0.9]), "optimizer.betas is [0.9]; expected 2 values"),
        (
            lambda words: words["optimizer"].update(lr=10**400),
            "optimizer.lr has 401 digits, too many for a float",
        ),
    ],
)
def test_json_is_as_strict(edit, message):
    words = to_dict(RECIPES["flava_debug"]())
    edit(words)
    with pytest.raises(ConfigError) as caught:
        from_dict(Config, words)
    assert message in str(caught.value)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"name": "run", "optimizer": {"lr": 1.0, "eps": 0.1, "lr": 2.0}}')
    with pytest.raises(ConfigError, match="config.json: key 'lr' occurs twice in one object"):
        load(path)
