"""What changes with the step, as pure functions of the step: ranks agree by arithmetic and resuming needs no state."""

import math

from flava_ds.config import Config


def learning_rate(config: Config, step: int) -> float:
    """Returns the learning rate of update `step` (0 is the first): linear warm-up, then cosine to schedule.min_lr.

    The first update uses lr / warmup_steps and the last, total_steps - 1, is one step short of min_lr.

    Source: paper, Table A.2 (warmup_cosine, 10,000 warm-up updates).
    """
    peak, floor = config.optimizer.lr, config.schedule.min_lr
    warmup, total = config.schedule.warmup_steps, config.training.total_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
