"""What is compared before a run goes on from a checkpoint."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from torch import nn

from flava_ds import config as configuration
from flava_ds.checkpoints import files
from flava_ds.checkpoints.fits import changed_settings, check_model, check_moments
from flava_ds.checkpoints.place import Place
from flava_ds.config import Config, TrainingConfig
from flava_ds.errors import CheckpointError


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


def test_a_checkpoint_without_the_teacher_says_when_its_own_settings_help(tmp_path):
    """They may be those that ask for it; then the checkpoint is damaged."""
    average = SimpleNamespace(followed={"encoder.weight": "weight"})
    engine = SimpleNamespace(
        state_tensors=dict, shapes=dict, module=nn.Linear(1, 1), averages={"dino.teacher": average}
    )
    reader = SimpleNamespace(folder=tmp_path, shapes={}, buffer_shapes=dict, holds=lambda key, name: False)
    with pytest.raises(CheckpointError) as caught:
        check_model(engine, reader)
    said = str(caught.value)
    assert (
        "has no 'dino.teacher' of 'encoder.weight', the teacher's weights, which this run keeps; if " in said
    )
    assert f"{tmp_path / 'config.json'} keeps them too, the checkpoint is damaged" in said
    assert "\n" not in said


def test_an_optimizer_whose_moments_the_checkpoint_lacks_is_named_with_the_one_that_wrote_it(tmp_path):
    def check(moments, holds):
        engine = SimpleNamespace(
            optimizer=SimpleNamespace(moments=moments), layout=lambda: {"optimizer": "GatedAdamW"}
        )
        state = {"layout": {"optimizer": "Lion"}}
        reader = SimpleNamespace(folder=tmp_path, shapes={"a": (1,), "b": (1,)}, state=state, holds=holds)
        check_moments(engine, reader)

    check(("exp_avg",), lambda key, name: (key, name) == ("exp_avg", "b"))  # "a" is frozen
    with pytest.raises(CheckpointError) as caught:
        check(("exp_avg", "exp_avg_sq"), lambda key, name: key == "exp_avg")
    assert str(caught.value) == (
        f"{tmp_path} has no 'exp_avg_sq', which GatedAdamW keeps and its optimizer, Lion, does not; go on "
        "with that one, or start another run from its weights: --name OTHER --initial-weights RUN"
    )
