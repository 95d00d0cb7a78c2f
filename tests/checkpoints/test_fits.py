"""What is compared before a run goes on from a checkpoint."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import pytest
from torch import nn

from flava_ds import config as configuration
from flava_ds.checkpoints import files
from flava_ds.checkpoints.fits import changed_settings, check_model, check_optimizer
from flava_ds.checkpoints.place import Place
from flava_ds.config import Config, TrainingConfig
from flava_ds.errors import CheckpointError
from flava_ds.optimizers.adamw import AdamWConfig
from flava_ds.optimizers.lion import LionConfig


def test_settings_that_changed_since_a_checkpoint_are_listed(tmp_path):
    before = Config(name="run", training=TrainingConfig(total_steps=10))
    configuration.save(before, tmp_path / files.CONFIG)
    assert changed_settings(Place(tmp_path), before) == []
    now = dataclasses.replace(
        before,
        optimizer=dataclasses.replace(before.optimizer, lr=0.5, betas=(0.9, 0.5)),
        training=TrainingConfig(total_steps=20),
    )
    assert changed_settings(Place(tmp_path), now) == [
        f"optimizer.betas.1 {before.optimizer.betas[1]} -> 0.5",
        f"optimizer.lr {before.optimizer.lr} -> 0.5",
        "training.total_steps 10 -> 20",
    ]
    (tmp_path / files.CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / files.CONFIG))):
        changed_settings(Place(tmp_path), before)


def test_a_checkpoint_without_the_teacher_says_when_its_own_settings_help(tmp_path):
    """They may be those that ask for it; then the checkpoint is damaged."""
    average = SimpleNamespace(followed={"encoder.bias", "encoder.weight"})
    engine = SimpleNamespace(
        state_tensors=dict, shapes=dict, module=nn.Linear(1, 1), averages={"dino.teacher": average}
    )
    reader = SimpleNamespace(folder=tmp_path, shapes={}, buffer_shapes=dict, holds=lambda key, name: False)
    reader.state = {"optimizer_updates": {}}
    check_model(engine, reader)  # all were frozen, which is another error
    reader.state = {"optimizer_updates": {"encoder.weight": 3}}
    with pytest.raises(CheckpointError) as caught:
        check_model(engine, reader)
    said = str(caught.value)
    assert (
        "has no 'dino.teacher' of 'encoder.weight', an average of weights, which this run keeps; if " in said
    )
    assert f"{tmp_path / 'config.json'} keeps them too, the checkpoint is damaged" in said
    assert "\n" not in said


def test_another_kind_of_optimizer_does_not_go_on(tmp_path):
    """Lion would take AdamW's average for its momentum; AdamW would lack the squares. Vendors of AdamW may
    replace each other.
    """
    place = Place(tmp_path)
    for written, other in ((AdamWConfig(name="apex_fused_adam"), "lion"), (LionConfig(), "adamw")):
        configuration.save(Config(name="run", optimizer=written), tmp_path / files.CONFIG)
        check_optimizer(place, written.type)
        said = (
            rf"was written with {written.type}, and {other} cannot go on .* --optimizer {written.type}, or .*"
        )
        with pytest.raises(CheckpointError, match=said + re.escape(f"--initial-weights {tmp_path}")):
            check_optimizer(place, other)
    (tmp_path / files.CONFIG).write_text('{"model": {}, "optimizer": {"lr": 0.1}}')
    with pytest.raises(CheckpointError, match=r"config.json has no optimizer.type; restore it"):
        check_optimizer(place, "adamw")
