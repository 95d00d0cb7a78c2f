"""Learning rate schedules as pure functions of the step: ranks need not communicate, resuming no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from flava_ds.config.bounds import AtLeast, AtMost, Between, Steps
from flava_ds.config.variants import Variant
from flava_ds.errors import ConfigError


def along_cosine(begin: float, end: float, progress: float) -> float:
    """Returns the value after a share of the way from `begin` to `end` along half a cosine."""
    return end + (begin - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Variant):
    """Linear warm-up, then the variant's schedule up to training.total_steps."""

    warmup_steps: Steps = 10_000
    """Optimizer steps of linear warm-up to optimizer.lr; the first step already has a part of it."""

    def learning_rate(self, step: int, peak: float, total_steps: int) -> float:
        """Returns the learning rate of update `step` (0 is the first) of `total_steps`, at most `peak`.

        Raises: ConfigError for a variant that gives none.
        """
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        given = self.after_warmup(step, peak, total_steps)
        try:
            rate = float(given)
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 <= rate < math.inf:
            raise ConfigError(
                f"schedule {type(self).__name__} gives {given!r:.60} as the learning rate of step {step}; "
                "return a finite number, 0 or above"
            )
        return rate

    def after_warmup(self, step: int, peak: float, total_steps: int) -> float:
        """Returns the learning rate of an update from `warmup_steps` on."""
        raise NotImplementedError(f"{type(self).__name__} does not implement after_warmup")

    def check(self, peak: float, total_steps: int) -> None:
        """Raises ConfigError for conflicts with the run's other settings."""
        if self.warmup_steps > total_steps:
            raise ConfigError(
                f"schedule.warmup_steps {self.warmup_steps} exceeds training.total_steps {total_steps}"
            )


@dataclass(frozen=True, kw_only=True)
class ConstantScheduleConfig(ScheduleConfig, type="constant"):
    """Warm-up, then optimizer.lr until the end."""

    def after_warmup(self, step: int, peak: float, total_steps: int) -> float:
        """Returns the peak."""
        return peak


@dataclass(frozen=True, kw_only=True)
class FallingScheduleConfig(ScheduleConfig):
    """Base of the schedules that fall to a minimum learning rate; not a variant itself."""

    min_lr: Annotated[float, AtLeast(0), AtMost(10)] = 0.0
    """Learning rate at training.total_steps, one step after the last update."""

    def fall_begins(self, total_steps: int) -> int:
        """Returns the step at which the learning rate starts to fall."""
        return self.warmup_steps

    def height(self, progress: float) -> float:
        """Returns where the learning rate is between min_lr (0) and peak (1) after a share of the fall."""
        return 1.0 - progress

    def after_warmup(self, step: int, peak: float, total_steps: int) -> float:
        """Stays at the peak until the fall begins, then falls to min_lr."""
        begin = self.fall_begins(total_steps)
        progress = min(1.0, max(0, step - begin) / max(1, total_steps - begin))
        return self.min_lr + (peak - self.min_lr) * self.height(progress)

    def check(self, peak: float, total_steps: int) -> None:
        """Raises ConfigError for conflicts with the run's other settings."""
        super().check(peak, total_steps)
        if self.min_lr > peak:
            raise ConfigError(
                f"schedule.min_lr {self.min_lr:g} exceeds optimizer.lr {peak:g}; the learning rate would "
                "rise instead of falling"
            )


@dataclass(frozen=True, kw_only=True)
class CosineScheduleConfig(FallingScheduleConfig, type="cosine"):
    """Warm-up, then half a cosine down to min_lr (FLAVA, Table A.2: warmup_cosine)."""

    def height(self, progress: float) -> float:
        """Returns 1 at the start, a half in the middle and 0 at the end."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class LinearScheduleConfig(FallingScheduleConfig, type="linear"):
    """Warm-up, then linear decay to min_lr (BERT)."""


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecayConfig(FallingScheduleConfig, type="wsd"):
    """Warm-up, a long plateau at optimizer.lr, then linear decay; runs can be extended from the plateau."""

    cooldown_share: Annotated[float, Between(0, 1)] = 0.2
    """Share of training.total_steps, at the end, over which the learning rate falls."""

    def fall_begins(self, total_steps: int) -> int:
        """Returns the first step of the cool-down."""
        return total_steps - round(self.cooldown_share * total_steps)

    def check(self, peak: float, total_steps: int) -> None:
        """Raises ConfigError for conflicts with the run's other settings."""
        super().check(peak, total_steps)
        if self.warmup_steps > self.fall_begins(total_steps):
            raise ConfigError(
                f"schedule.warmup_steps {self.warmup_steps} overlaps the cool-down, which begins at step "
                f"{self.fall_begins(total_steps)} (schedule.cooldown_share {self.cooldown_share:g} of "
                f"{total_steps}); reduce one of them"
            )
