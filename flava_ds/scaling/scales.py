"""Simulated runs on several numbers of GPUs: weak and strong scaling, and the time lost by cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flava_ds.errors import ConfigError
from flava_ds.scaling.assumptions import BETTER, MIDDLE, WORSE
from flava_ds.scaling.failures import Rate
from flava_ds.scaling.plan import Estimate, Setting, plan
from flava_ds.scaling.simulator import CAUSES, Outcome, Simulator, recovery_of, run_of, scaled

MOST_GPUS = 16_384


@dataclass(frozen=True)
class Scaled:
    """One simulated run; `setting` is None where the batch does not divide by the GPUs."""

    gpus: int
    weak: bool
    setting: Setting | None
    outcome: Outcome | None
    fits: str = ""
    """Whether it fits the GPUs' memory, as a plan says it: "yes", "no" or "perhaps"."""
    interval: float = 0.0
    """Seconds between checkpoints."""
    ends: tuple[Outcome, ...] = ()
    """The same with all assumptions at their worse, and at their better end, with the same draws."""

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcome in the middle and at both ends; empty where the batch does not divide."""
        return [self.outcome, *self.ends] if self.outcome is not None else []

    def estimate(self, value: Callable[[Outcome], float]) -> Estimate:
        """Returns a number of the outcome with its range."""
        return _estimate([value(outcome) for outcome in self.outcomes])

    def samples_per_second(self, outcome: Outcome) -> float:
        """Returns the samples of kept steps over the whole wall time."""
        setting = self.setting
        assert setting is not None
        return (
            setting.mean(lambda source: setting.global_batches[source]) * setting.total_steps / outcome.wall
        )


def _estimate(values: Sequence[float]) -> Estimate:
    """Returns the first of some values, with the range of all."""
    return Estimate(min(values), values[0], max(values))


def parse_scale(text: str | None, gpus: int) -> list[int]:
    """Reads --scale. Raises: ConfigError for what is no list of numbers from 1 to MOST_GPUS."""
    if text is None:
        return [gpus]
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= MOST_GPUS for word in words):
        raise ConfigError(f"--scale '{text}': give numbers of GPUs from 1 to {MOST_GPUS}, e.g. 8,64,512,4096")
    return sorted({int(word) for word in words})


def simulate(setting: Setting, counts: Sequence[int], rate: Rate) -> list[Scaled]:
    """Simulates the run on every number of GPUs, with the same batch in all (strong) and on each (weak): with
    the assumptions in the middle and at both ends.
    """
    found = []
    for weak in (False, True):
        for gpus in counts:
            other = scaled(setting, gpus, weak=weak)
            if other is None:
                found.append(Scaled(gpus, weak, None, None))
                continue
            middle, *ends = (
                Simulator(run_of(other, recovery_of(other, assumed), rate, assumed))
                for assumed in (MIDDLE, WORSE, BETTER)
            )
            outcomes = [simulator.simulate() for simulator in (middle, *ends)]
            found.append(
                Scaled(gpus, weak, other, outcomes[0], plan(other).fits, middle.interval, tuple(outcomes[1:]))
            )
    return found


def scale_rows(found: Sequence[Scaled], weak: bool) -> list[list[str]]:
    """Returns one row for each number of GPUs; shares are of the wall time in the middle, in per cent."""
    shown = [
        cause for cause in CAUSES if any(each.outcome and _share(each, cause) >= 0.0005 for each in found)
    ]
    rows = [["GPUs", "per GPU", "fits", "samples/s", "efficiency, %", "hours", "failures", *shown]]
    first: list[float] = []
    for each in found:
        if each.weak != weak:
            continue
        if each.setting is None or each.outcome is None:
            rows.append([str(each.gpus), "-", "", "does not divide", *[""] * (len(rows[0]) - 4)])
            continue
        per_gpu = [each.samples_per_second(outcome) / each.gpus for outcome in each.outcomes]
        first = first or per_gpu
        kept = _estimate([100 * own / before for own, before in zip(per_gpu, first, strict=True)])
        rows.append(
            [
                str(each.gpus),
                str(max(each.setting.micro_batches.values())),
                each.fits,
                each.estimate(each.samples_per_second).text(),
                kept.text(2),
                each.estimate(lambda outcome: outcome.wall / 3600).text(),
                each.estimate(lambda outcome: outcome.failures).text(),
                *(f"{100 * _share(each, cause):.1f}" for cause in shown),
            ]
        )
    return rows


def _share(each: Scaled, cause: str) -> float:
    """Returns the share of the wall time that a cause took."""
    return each.outcome.lost[cause] / each.outcome.wall if each.outcome and each.outcome.wall else 0.0


def as_json(each: Scaled) -> dict[str, Any]:
    """Returns a simulated run as plain values."""
    found: dict[str, Any] = {"gpus": each.gpus, "scaling": "weak" if each.weak else "strong"}
    if each.outcome is None:
        return found | {"divides": False}
    outcome = each.outcome
    return found | {
        "fits": each.fits,
        "samples_per_second": asdict(each.estimate(each.samples_per_second)),
        "wall_s": asdict(each.estimate(lambda outcome: outcome.wall)),
        "failures": asdict(each.estimate(lambda outcome: outcome.failures)),
        "checkpoints": asdict(each.estimate(lambda outcome: outcome.checkpoints)),
        "checkpoint_interval_s": each.interval,
        "useful": asdict(each.estimate(lambda outcome: outcome.useful)),
        "seconds": outcome.lost,
    }
