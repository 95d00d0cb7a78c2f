"""Simulated runs on several numbers of GPUs: weak and strong scaling, and the time lost by cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flava_ds.errors import ConfigError
from flava_ds.scaling.failures import Rate
from flava_ds.scaling.plan import Setting, shortened
from flava_ds.scaling.simulator import CAUSES, Outcome, Simulator, recovery_of, run_of, scaled

MOST_GPUS = 16_384


@dataclass(frozen=True)
class Scaled:
    """One simulated run; `setting` is None where the batch does not divide by the GPUs."""

    gpus: int
    weak: bool
    setting: Setting | None
    outcome: Outcome | None
    interval: float = 0.0
    """Seconds between checkpoints."""

    @property
    def samples_per_second(self) -> float:
        """Samples of kept steps over the whole wall time."""
        if self.setting is None or self.outcome is None:
            return 0.0
        shares, batches = self.setting.shares, self.setting.global_batches
        per_step = sum(share * batches[name] for name, share in shares.items())
        return per_step * self.setting.total_steps / self.outcome.wall


def parse_scale(text: str | None, gpus: int) -> list[int]:
    """Reads --scale. Raises: ConfigError for what is no list of numbers from 1 to MOST_GPUS."""
    if text is None:
        return [gpus]
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and 1 <= int(word) <= MOST_GPUS for word in words):
        raise ConfigError(f"--scale '{text}': give numbers of GPUs from 1 to {MOST_GPUS}, e.g. 8,64,512,4096")
    return sorted({int(word) for word in words})


def simulate(setting: Setting, counts: Sequence[int], rate: Rate, seed: int = 0) -> list[Scaled]:
    """Simulates the run on every number of GPUs, with the same batch in all (strong) and on each (weak)."""
    found = []
    for weak in (False, True):
        for gpus in counts:
            other = scaled(setting, gpus, weak=weak)
            if other is None:
                found.append(Scaled(gpus, weak, None, None))
                continue
            simulator = Simulator(run_of(other, recovery_of(other), rate), seed)
            found.append(Scaled(gpus, weak, other, simulator.simulate(), simulator.interval))
    return found


def scale_rows(found: Sequence[Scaled], weak: bool) -> list[list[str]]:
    """Returns one row for each number of GPUs; shares are of the wall time, in per cent."""
    shown = [
        cause for cause in CAUSES if any(each.outcome and _share(each, cause) >= 0.0005 for each in found)
    ]
    rows = [["GPUs", "per GPU", "samples/s", "efficiency", "hours", "failures", *shown]]
    first: float | None = None
    for each in found:
        if each.weak != weak:
            continue
        if each.setting is None or each.outcome is None:
            rows.append([str(each.gpus), "-", "does not divide", *[""] * (len(rows[0]) - 3)])
            continue
        per_gpu = each.samples_per_second / each.gpus
        first = first or per_gpu
        rows.append(
            [
                str(each.gpus),
                str(max(each.setting.micro_batches.values())),
                shortened(each.samples_per_second),
                f"{per_gpu / first:.0%}",
                f"{each.outcome.wall / 3600:.2f}",
                str(each.outcome.failures),
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
        "samples_per_second": each.samples_per_second,
        "wall_s": outcome.wall,
        "failures": outcome.failures,
        "checkpoints": outcome.checkpoints,
        "checkpoint_interval_s": each.interval,
        "useful": outcome.useful,
        "seconds": outcome.lost,
    }
