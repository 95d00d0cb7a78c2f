"""A teacher's parts are lent in the places of the student's, and given back whatever happens."""

from types import SimpleNamespace

import pytest
from sample_batches import tiny_config

from flava_ds.errors import ConfigError
from flava_ds.families.flava.task import build_task
from flava_ds.objectives.dino import DinoConfig
from flava_ds.training.whole_weights import WholeWeights

DINO = DinoConfig(num_prototypes=8, head_hidden_size=8, bottleneck_size=4, local_size=8)


def test_the_teacher_is_lent_and_the_student_comes_back():
    task = build_task(tiny_config(objectives={"dino": DINO})).train()
    teacher, student = task.states["dino.teacher"], task.model.image_encoder
    teacher.follows = {"encoder.": "model.image_encoder.", "head.": "objectives.dino.head."}
    weights = WholeWeights(SimpleNamespace(module=task, stage=1), None, "dino.teacher")
    with pytest.raises(RuntimeError, match="a task failed"), weights.lent() as lent:
        assert lent.model.image_encoder is teacher.encoder is not student and not lent.training
        raise RuntimeError("a task failed")
    assert task.model.image_encoder is student and task.training
    assert set(dict(task.named_parameters())) == set(
        dict(build_task(tiny_config(objectives={"dino": DINO})).named_parameters())
    )


def test_an_average_that_is_not_there_is_one_line():
    task = build_task(tiny_config(objectives={"dino": DINO}))
    with pytest.raises(
        ConfigError, match="is 'dino.centre', but this run's running averages are dino.teacher"
    ):
        WholeWeights(SimpleNamespace(module=task, stage=1), None, "dino.centre")
