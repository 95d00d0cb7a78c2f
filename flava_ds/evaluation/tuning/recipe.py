"""Hyper-parameters of a fine-tuning; learning rate and samples are pure functions of the update."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from flava_ds.config.schedules import CosineScheduleConfig, FallingScheduleConfig, LinearScheduleConfig
from flava_ds.data.order import Order, source_seed


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row of a table of hyper-parameters."""

    samples: int
    """Size of the published training split, which `updates` is meant for; 1 for a recipe of passes, which is
    published for no split."""
    batch_size: int
    lr: float
    updates: int
    """Where the schedule ends."""
    warmup_updates: int
    epochs: int | None = None
    """Training ends after this many passes, wherever the schedule is; None: after `updates`."""
    cosine: bool = False
    """The learning rate falls along half a cosine; else linearly."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled, and applied to every weight, gains and biases included."""
    judged_every: int | None = None
    """Updates between two evaluations on the split that chooses the weights; None: each epoch."""
    rows_at_once: int = 32
    """Most samples encoded together; larger batches are split, with the same result."""
    seed: int = 0

    @property
    def is_for_any_size(self) -> bool:
        """Whether it is published for no training split."""
        return self.samples == 1

    def fitted(self, samples: int) -> Recipe:
        """Returns the recipe for a training split of another size: the same number of passes and the same
        share of warm-up."""
        if samples == self.samples:
            return self
        if self.epochs:
            updates = self.epochs * self.updates_per_epoch(samples)
        else:
            updates = max(1, round(self.updates * samples / self.samples))
        warmup = round(updates * self.warmup_updates / self.updates)
        return dataclasses.replace(self, samples=samples, updates=updates, warmup_updates=warmup)

    def updates_per_epoch(self, samples: int) -> int:
        """Returns how many batches hold every sample once; the last one may be smaller."""
        return -(-samples // self.batch_size)

    @property
    def last_update(self) -> int:
        """How many updates are made."""
        return self.epochs * self.updates_per_epoch(self.samples) if self.epochs else self.updates

    def learning_rate(self, update: int) -> float:
        """Returns the learning rate of an update; 0 is the first."""
        kind: type[FallingScheduleConfig] = CosineScheduleConfig if self.cosine else LinearScheduleConfig
        schedule = kind(warmup_steps=self.warmup_updates)
        return schedule.learning_rate(update, self.lr, self.updates)

    def is_judged(self, update: int) -> bool:
        """Returns whether the weights are evaluated after `update` updates."""
        every = self.judged_every or self.updates_per_epoch(self.samples)
        return update == self.last_update or update % every == 0

    def rows(self, task: str, update: int) -> np.ndarray:
        """Returns the samples of an update: [batch_size] int64, fewer at the end of an epoch."""
        epoch, number = divmod(update, self.updates_per_epoch(self.samples))
        first = number * self.batch_size
        places = np.arange(first, min(first + self.batch_size, self.samples))
        return Order(seed=self.seed, source=source_seed(task, None), size=self.samples).at(epoch, places)


def glue(samples: int, batch_size: int, lr: float, updates: int, warmup_updates: int) -> Recipe:
    """Returns a row of fairseq's table for RoBERTa on GLUE, which the paper follows: ten epochs of Adam.

    fairseq's encoder also has a dropout of 0.1; encoders that are fine-tuned here have none.
    """
    return Recipe(
        samples=samples,
        batch_size=batch_size,
        lr=lr,
        updates=updates,
        warmup_updates=warmup_updates,
        epochs=10,
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=0.1,
    )


def multimodal(samples: int, lr: float, updates: int, rows_at_once: int = 32) -> Recipe:
    """Returns the paper's settings for its multimodal tasks (supplement): AdamW, batches of 256, cosine.

    How often it evaluated on the development split is not published; here it is every 1,000 updates.
    """
    return Recipe(
        samples=samples,
        batch_size=256,
        lr=lr,
        updates=updates,
        warmup_updates=2000,
        cosine=True,
        weight_decay=1e-2,
        judged_every=1000,
        rows_at_once=rows_at_once,
    )
