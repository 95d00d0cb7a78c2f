"""A stranger's optimizer: gradient descent with a heavy ball, on a fifth of FLAVA's objectives."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from stranger_runs import STEPS, numbers_of, prove, split, stranger_config
from torch import Tensor

from flava_ds.config import CheckpointConfig, Config
from flava_ds.config.bounds import Below
from flava_ds.config.optimizers import OptimizerConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.optimizers.base import TensorByTensor


@dataclass(frozen=True, kw_only=True)
class HeavyBallConfig(OptimizerConfig, type="heavy_ball"):
    """Momentum that adds up gradients."""

    friction: Annotated[float, Below(1)] = 0.9

    def build(self, groups: list[dict[str, Any]]) -> HeavyBall:
        return HeavyBall(groups, {"lr": self.lr, "friction": self.friction})


class HeavyBall(TensorByTensor):
    """Updates `v <- friction v + g`, then `w <- (1 - lr decay) w - lr v`.

    Source: Polyak 1964, "Some methods of speeding up the convergence of iteration methods".
    """

    moments = ("velocity",)

    def move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Updates one tensor; a skipped update takes a share of 0 of a finite gradient."""
        state = self.create_state(parameter)
        velocity = state["velocity"]
        gradient, taken = self.taken(parameter, velocity)
        velocity.add_((gradient - velocity * (1.0 - group["friction"])) * taken)
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"] * taken)
        parameter.sub_(velocity * (group["lr"] * taken))
        state["step"] += taken


class Forgetful(HeavyBall):
    """Has a second moment that it does not declare."""

    def move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        super().move(parameter, group)
        self.state[parameter]["squares"] = self.state[parameter]["velocity"] ** 2


@dataclass(frozen=True, kw_only=True)
class ForgetfulConfig(HeavyBallConfig, type="forgetful"):
    """Its settings."""

    def build(self, groups: list[dict[str, Any]]) -> Forgetful:
        return Forgetful(groups, {"lr": self.lr, "friction": self.friction})


def ball_config(folder: Path, optimizer: OptimizerConfig, **settings: Any) -> Config:
    """A run of a stranger's optimizer."""
    objectives = {"matching": ImageTextMatchingConfig(mismatch_probability=0.5)}
    return stranger_config(folder, name="ball", optimizer=optimizer, objectives=objectives, **settings)


def lines_of(configs: list[Config]) -> list[list[str]]:
    """Trains one run after the other; returns what each says of its optimizer."""
    from flava_ds.build import build

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("flava_ds").addHandler(handler)
    found = []
    for config in configs:
        build(config).fit()
        found.append([line for line in lines if line.startswith("the optimizer also keeps")])
        lines.clear()
    return found


@pytest.mark.slow
def test_what_checkpoints_leave_out_of_an_optimizer_is_told_once(run_ranks, tmp_path):
    config = ball_config(tmp_path, ForgetfulConfig(lr=0.05), checkpoint=CheckpointConfig(every_steps=2))
    line = (
        "the optimizer also keeps squares, which checkpoints do not: a resumed run goes on without; add the "
        "names to the moments of Forgetful"
    )
    configs = [split(config, stage, stage, 1) for stage in ("zero0", "zero1", "zero3")]
    configs.append(dataclasses.replace(configs[0], name="ball", optimizer=HeavyBallConfig(lr=0.05)))
    assert run_ranks(lines_of, 1, configs) == [[[line], [line], [line], []]]


@pytest.mark.distributed
@pytest.mark.slow
def test_an_optimizer_with_one_moment(run_ranks, tmp_path):
    config = ball_config(tmp_path, HeavyBallConfig(lr=0.05))
    curve = prove(run_ranks, config)
    assert len({line["loss/matching"] for line in curve}) == STEPS
    numbers = numbers_of(split(config, "zero1_whole", "zero1", 2))
    kept = {name.split("/")[0] for name in numbers if not name.startswith("buffer")}
    assert kept == {"weight", "velocity"}
    assert float(numbers["velocity/objectives.matching.head.classifier.weight"].abs().max()) > 0
