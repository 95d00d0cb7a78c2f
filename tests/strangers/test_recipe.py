"""A stranger's recipe: a file anywhere, which brings a variant of its own; trained by its place, resumed from
config.json.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from stranger_runs import (
    STEPS,
    STOPPED_AFTER,
    curve,
    numbers_of,
    partition_everything,
    split,
    stranger_config,
)

from flava_ds import config as configuration
from flava_ds.errors import ConfigError
from flava_ds.objectives.itm import ImageTextMatchingConfig

RECIPE = '''
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from flava_ds import config
from flava_ds.config.schedules import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class SawtoothConfig(ScheduleConfig, type="sawtooth"):
    """Starts again every few steps."""

    teeth: int = 3

    def after_warmup(self, step: int, peak: float, total_steps: int) -> float:
        return peak * (1 - step % self.teeth / self.teeth)


def small() -> config.Config:
    """A saved run with another schedule."""
    base = config.load(Path(__file__).with_name("base.json"))
    return dataclasses.replace(base, schedule=SawtoothConfig(warmup_steps=1))
'''


def train(runs: tuple[tuple[list[str], int | None], ...]) -> list[int]:
    """On every rank: command lines one after the other, as the program of a launcher takes them; some are
    stopped.
    """
    from flava_ds import train as program
    from flava_ds.ranks import run_lock
    from flava_ds.training.engine import Engine

    statuses, update = [], Engine.update
    for words, stopped_after in runs:
        done = iter(range(STEPS))

        def counted(engine: Engine, last=stopped_after, done=done) -> torch.Tensor:
            if next(done) == last and engine.world.is_main:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(engine)

        Engine.update = counted
        statuses.append(program.run(words))
        run_lock.release_all()
    return statuses


@pytest.mark.distributed
@pytest.mark.slow
def test_a_recipe_from_a_file(run_ranks, tmp_path):
    config = stranger_config(
        tmp_path, name="base", objectives={"matching": ImageTextMatchingConfig(mismatch_probability=0.5)}
    )
    recipe = tmp_path / "mine.py"
    recipe.write_text(RECIPE)
    configuration.save(config, tmp_path / "base.json")
    zero3 = partition_everything(Path(config.logging.run_directory).parent)
    runs, named = [], {}
    for name, stage in (("one", "zero1"), ("three", zero3)):
        words = [f"{recipe}:small", "--engine.deepspeed-config", stage, "--schedule.teeth", "2", "--name"]
        for how in ("whole", "broken"):
            named[name, how] = split(config, f"{name}_{how}", stage, 1)
            runs.append(([*words, f"{name}_{how}"], STOPPED_AFTER if how == "broken" else None))
        saved = str(named[name, "broken"].run_path / "config.json")
        # what the first start has written is enough to go on
        runs.append((["--plugin", str(recipe), saved], None))
    assert run_ranks(train, 2, tuple(runs)) == [[0, 128 + signal.SIGTERM, 0] * 2] * 2
    expected = curve(named["one", "whole"])
    assert [line["lr"] / config.optimizer.lr for line in expected] == pytest.approx([1, 0.5, 1, 0.5, 1])
    for name in ("one", "three"):
        whole, broken = named[name, "whole"], named[name, "broken"]
        assert curve(whole) == curve(broken) and len(expected) == STEPS
        ours, theirs = numbers_of(broken), numbers_of(whole)
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
        assert json.loads((whole.run_path / "config.json").read_text())["schedule"]["type"] == "sawtooth"
    for ours, theirs in zip(curve(named["three", "whole"]), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    with pytest.raises(ConfigError, match="sawtooth.*--plugin"):
        configuration.load(named["one", "whole"].run_path / "config.json")
