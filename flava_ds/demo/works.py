"""What a demo does: a fixed number of steps, reproducible up to rounding, or what fits into some minutes."""

from __future__ import annotations

from dataclasses import dataclass, field

from flava_ds.demo.evaluation.summary import CONTRAST, FLAT

GFLOP_OF_A_STEP = 25.0
"""Per step of the recipe `demo`, averaged over its sources."""
AROUND_PRODUCTS = 2.5
"""What surrounds the matrix products of a step takes this many times what they would take in fp32, whichever
precision they have: 0.9 on an AMD EPYC with bf16 instructions, 1.8 on an Intel Xeon without, 4 on one
loaded by other work whose bf16 products are eight times as fast.
"""
AFTER_TRAINING_GFLOP = 5_000.0
"""Approximate cost of evaluation, export and report, expressed as matrix products in fp32."""

STRONGER_COLOURS = tuple(
    word
    for name, value in (("color-jitter", "0.3"), ("invert", "0.05"), ("edges", "0.12"))
    for word in (f"--data.sources.pair.transform.{name}", value)
)
"""Pairs that are seen about two hundred times are augmented more than those seen thirty times."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A number of steps and the gates' thresholds on held-out data. Without thresholds nothing can fail."""

    name: str
    total_steps: int
    thresholds: dict[str, float] = field(default_factory=dict)
    """Metric -> minimum."""
    overrides: tuple[str, ...] = ()
    """Differences from the recipe, as on the command line."""


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
"""Named after the time they take at most on two cores with bf16 instructions.

The last one shows that everything runs, and learns little.
"""


def expected_seconds(steps: int, gemm_rate: float, fp32_rate: float) -> float:
    """Estimates the seconds of `steps` steps and what follows, right within a factor of two or three.

    Takes the GFLOP/s of matrix products of all ranks together: in the precision of training, and in fp32.
    """
    around = steps * GFLOP_OF_A_STEP * AROUND_PRODUCTS + AFTER_TRAINING_GFLOP
    return steps * GFLOP_OF_A_STEP / gemm_rate + around / fp32_rate
