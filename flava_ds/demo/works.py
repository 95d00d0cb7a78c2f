"""What a demo does: a work of fixed steps, whose result is the same everywhere up to rounding, or what fits
into given minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flava_ds.demo.evaluation.summary import CONTRAST, FLAT

GFLOP_OF_A_STEP = 25.0
"""Of a step of the recipe `demo`, averaged over its sources."""
SHARE_OF_GEMM_RATE = 0.33
"""What training makes of the rate of matrix products that the demo measures before it, about."""
AFTER_TRAINING_GFLOP = 10_000.0
"""What evaluation, export and report take beside that rate, as if it were matrix products, about."""

STRONGER_COLOURS = tuple(
    word
    for name, value in (("color-jitter", "0.3"), ("invert", "0.05"), ("edges", "0.12"))
    for word in (f"--data.sources.pair.transform.{name}", value)
)
"""Pairs that are seen some two hundred times are changed more than those that are seen thirty times."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A number of steps, and what the gates ask of the held-out data after them. Without thresholds no gate
    decides anything.
    """

    name: str
    total_steps: int
    thresholds: dict[str, float] = field(default_factory=dict)
    """Metric -> least value."""
    overrides: tuple[str, ...] = ()
    """What differs from the recipe, as on the command line."""


WORKS = {
    work.name: work
    for work in (
        Work(
            name="ten-minutes",
            total_steps=2400,
            thresholds={f"zero_shot/{FLAT}/top5_accuracy": 0.15, f"zero_shot/{CONTRAST}/top5_accuracy": 0.04},
        ),
        Work(
            name="hour",
            total_steps=15_000,
            overrides=(
                "--data.sources.pair.transform.crop-scale",
                "0.7",
                "1.0",
                "--data.sources.pair.transform.rotation-degrees",
                "8",
                *STRONGER_COLOURS,
            ),
            thresholds={
                f"zero_shot/{FLAT}/top1_accuracy": 0.22,
                f"zero_shot/{FLAT}/top5_accuracy": 0.48,
                f"zero_shot/{CONTRAST}/top5_accuracy": 0.18,
            },
        ),
        Work(name="two-minutes", total_steps=100),
    )
}
"""Named after the time that they take at most on two cores with bf16 instructions. The last one shows that
everything runs, and learns little.
"""
DEFAULT_WORK = "ten-minutes"


def expected_seconds(steps: int, gemm_rate: float) -> float:
    """Returns about how long `steps` steps and what follows them take at a rate of matrix products in
    GFLOP/s, all ranks together.
    """
    return (steps * GFLOP_OF_A_STEP / SHARE_OF_GEMM_RATE + AFTER_TRAINING_GFLOP) / gemm_rate
