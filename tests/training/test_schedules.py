"""The learning rate, by hand."""

import dataclasses

import pytest
from toy import toy_config

from flava_ds.config import OptimizerConfig, ScheduleConfig
from flava_ds.training.schedules import learning_rate


def config(warmup: int, total: int = 12):
    base = toy_config(total_steps=total)
    return dataclasses.replace(base, optimizer=OptimizerConfig(lr=1.0), schedule=ScheduleConfig(warmup_steps=warmup, min_lr=0.2))


def test_warmup_rises_in_equal_steps_and_cosine_falls_to_the_minimum():
    c = config(warmup=4)
    assert [learning_rate(c, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(c, 8) == pytest.approx(0.6)  # half way down
    assert learning_rate(c, 12) == pytest.approx(0.2)
    assert learning_rate(c, 100) == pytest.approx(0.2)
    falling = [learning_rate(c, step) for step in range(4, 13)]
    assert falling == sorted(falling, reverse=True)


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(config(warmup=0), 0) == 1.0


def test_all_warmup_never_divides_by_zero():
    assert learning_rate(config(warmup=12), 11) == 1.0 and learning_rate(config(warmup=12), 12) == pytest.approx(1.0)
