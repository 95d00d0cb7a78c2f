"""The learning rate of every schedule, by hand and by formula in fp64."""

import dataclasses
import math

import pytest

from flava_ds.config import (
    ConstantScheduleConfig,
    CosineScheduleConfig,
    LinearScheduleConfig,
    ScheduleConfig,
    WarmupStableDecayConfig,
    check,
    from_dict,
    to_dict,
)
from flava_ds.config.options import override
from flava_ds.config.variants import choices, find
from flava_ds.errors import ConfigError
from flava_ds.recipes import RECIPES

PEAK, FLOOR = 1.0, 0.2


def rates(schedule: ScheduleConfig, total: int, steps: range | None = None) -> list[float]:
    """Returns the learning rates of a run."""
    return [schedule.learning_rate(step, PEAK, total) for step in steps or range(total)]


@pytest.mark.parametrize("tag", choices(ScheduleConfig))
def test_warmup_rises_in_equal_parts_to_the_peak(tag):
    schedule = dataclasses.replace(find(ScheduleConfig, tag, "")(), warmup_steps=4)
    assert rates(schedule, 12, range(5)) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(dataclasses.replace(schedule, warmup_steps=0), 12, range(1)) == [1.0]
    assert rates(dataclasses.replace(schedule, warmup_steps=12), 12)[-1] == 1.0
    every = rates(schedule, 12, range(4, 40))
    assert every == sorted(every, reverse=True) and from_dict(ScheduleConfig, to_dict(schedule)) == schedule


def test_cosine_falls_to_the_minimum():
    schedule = CosineScheduleConfig(warmup_steps=4, min_lr=FLOOR)
    assert rates(schedule, 12, range(8, 9)) == pytest.approx([0.6])  # half way down
    assert (
        rates(schedule, 12, range(12, 13)) == rates(schedule, 12, range(100, 101)) == pytest.approx([FLOOR])
    )
    for step in range(4, 13):
        assert schedule.learning_rate(step, PEAK, 12) == pytest.approx(
            FLOOR + 0.8 * math.cos(math.pi / 2 * (step - 4) / 8) ** 2, abs=1e-15
        )
    assert rates(dataclasses.replace(schedule, warmup_steps=12), 12, range(12, 13)) == pytest.approx([1.0])


def test_linear_falls_by_equal_parts():
    schedule = LinearScheduleConfig(warmup_steps=4, min_lr=FLOOR)
    assert rates(schedule, 12, range(4, 14)) == pytest.approx(
        [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2]
    )


def test_constant_stays():
    assert rates(ConstantScheduleConfig(warmup_steps=2), 1000, range(1, 2000, 100)) == [1.0] * 20


def test_wsd_stays_and_falls_at_the_end():
    schedule = WarmupStableDecayConfig(warmup_steps=4, cooldown_share=0.25, min_lr=FLOOR)
    assert rates(schedule, 20) == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 13, 0.84, 0.68, 0.52, 0.36])
    assert rates(schedule, 20, range(20, 21)) == pytest.approx([FLOOR])
    longer = rates(schedule, 40)
    assert longer[:15] == rates(schedule, 20)[:15]  # a longer run repeats the shorter one up to its cool-down
    assert rates(dataclasses.replace(schedule, cooldown_share=0.0), 20)[4:] == [1.0] * 16
    assert rates(dataclasses.replace(schedule, warmup_steps=0, cooldown_share=1.0), 20) == rates(
        LinearScheduleConfig(warmup_steps=0, min_lr=FLOOR), 20
    )


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (CosineScheduleConfig(warmup_steps=21), "schedule.warmup_steps 21 exceeds training.total_steps 20"),
        (ConstantScheduleConfig(warmup_steps=21), "schedule.warmup_steps 21 exceeds training.total_steps 20"),
        (LinearScheduleConfig(warmup_steps=2, min_lr=1.5), "schedule.min_lr 1.5 exceeds optimizer.lr 1"),
        (
            WarmupStableDecayConfig(warmup_steps=17),
            (
                r"warmup_steps 17 overlaps the cool-down, which begins at step 16 \(.*cooldown_share 0.2 "
                r"of 20\)"
            ),
        ),
    ],
)
def test_what_cannot_be_is_refused(schedule, message):
    with pytest.raises(ConfigError, match=message):
        schedule.check(PEAK, 20)


def test_an_exchange_keeps_the_warmup_and_the_end():
    demo = RECIPES["demo"]()
    warmup, end, steps, lr = (
        demo.schedule.warmup_steps,
        demo.schedule.min_lr,
        demo.training.total_steps,
        demo.optimizer.lr,
    )
    changed = override(demo, ["--schedule", "wsd", "--schedule.cooldown-share", "0.5"])
    assert changed.schedule == WarmupStableDecayConfig(warmup_steps=warmup, min_lr=end, cooldown_share=0.5)
    assert override(demo, ["--schedule", "constant"]).schedule == ConstantScheduleConfig(warmup_steps=warmup)
    seen = [changed.learning_rate(step) for step in (warmup - 1, steps // 2 - 1, steps // 2, steps * 3 // 4)]
    assert seen == pytest.approx([lr, lr, lr, (lr + end) / 2])


@pytest.mark.parametrize("given", [math.nan, math.inf, -0.1, None, "fast"])
def test_what_is_no_rate_is_named_with_its_step_before_the_first(monkeypatch, given):
    config = RECIPES["flava_debug"]()
    falls = type(config.schedule).after_warmup
    for wrong in (config.schedule.warmup_steps, config.training.total_steps - 1):

        def after_warmup(self, step, peak, total, wrong=wrong):
            return given if step == wrong else falls(self, step, peak, total)

        monkeypatch.setattr(type(config.schedule), "after_warmup", after_warmup)
        with pytest.raises(
            ConfigError, match=rf"{given!r} as the learning rate of step {wrong}; return a fin"
        ):
            check(config)
