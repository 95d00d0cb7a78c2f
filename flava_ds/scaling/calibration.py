"""What real steps say of the planner: measured over planned step, from `flava-ds plan --tune`."""

from __future__ import annotations

import logging
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from flava_ds.config import Config
from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import ConfigError, number_of
from flava_ds.scaling.assumptions import BETTER, MIDDLE, WORSE, Assumptions

log = logging.getLogger(__name__)

RESULTS = "tuned.json"
"""In the folder of a tuning."""
NONE = "none"
"""In place of a file of results."""
REPLACED = (
    "product_share",
    "attention_share",
    "convolution_share",
    "bandwidth_share",
    "launch_us",
    "custom_us",
    "beside_us",
)
"""Assumptions about the device and the host, whose ranges the measured one takes the place of."""


def tuning_folder(config: Config) -> Path:
    """Returns where `flava-ds plan --tune` keeps the trials of a run."""
    return Path(config.logging.run_directory) / f"{config.name}-tune"


def tuned_file(config: Config) -> Path:
    """Returns where `flava-ds plan --tune` leaves its results."""
    return tuning_folder(config) / RESULTS


@dataclass(frozen=True)
class Calibration:
    """Measured over planned time of a step, over the trials of a tuning on one node."""

    better: float
    middle: float
    worse: float
    trials: int
    gpu: str
    """The GPU that was measured, as a name of hardware.py."""
    file: Path

    def applied(self, assumed: Assumptions) -> Assumptions:
        """Returns an end of the assumptions with the measured factor in place of those about the device.

        Memory, network and loader keep their ranges: a tuning on one node says nothing about other nodes.
        """
        own = {name: getattr(MIDDLE, name) for name in REPLACED}
        factor = {WORSE: self.worse, BETTER: self.better}.get(assumed, self.middle)
        return replace(assumed, device_factor=factor, **own)

    @property
    def text(self) -> str:
        """Says what was measured."""
        return (
            f"Calibrated by {number_of(self.trials, 'trial')} in {self.file}: steps took "
            f"{self.middle:.2f} times ({self.better:.2f} to {self.worse:.2f}) what was planned."
        )


def calibration_for(given: str | None, tuned: Path, gpu: str, precision: str) -> Calibration | None:
    """Returns what a plan for `gpu` follows: the file `given`, nothing for NONE, or by default the results of
    tuning its recipe, `tuned`, if there are any of such a GPU and precision. Says so if those cannot be read.

    Raises: ConfigError as read_calibration, for a given file.
    """
    if given is not None:
        return None if given == NONE else read_calibration(Path(given), gpu, precision)
    if not tuned.is_file():
        return None
    try:
        found = loads(read_small(tuned))
        alike = (found["gpu"], found["precision"]) == (gpu, precision)
        return read_calibration(tuned, gpu, precision) if alike else None
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        log.warning("the plan does not follow %s (%s)", tuned, error)
        return None


def read_calibration(file: Path, gpu: str, precision: str) -> Calibration:
    """Reads the results of a tuning, for plans of the same GPU and precision.

    Raises: ConfigError for another file, GPU or precision, or trials without a forecast beside them.
    """
    try:
        found = dict(loads(read_small(file)))
        measured, in_precision = found["gpu"], found["precision"]
        ratios = [
            trial["step_ms"] / trial["planned_ms"]
            for trial in found["trials"]
            if trial["step_ms"] and trial["planned_ms"]
        ]
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{file}: not the results of `flava-ds plan --tune` ({error})") from error
    if measured is None:
        raise ConfigError(f"{file}: was made on a CPU, or on a GPU that the planner does not know")
    if wrong := [ratio for ratio in ratios if not 0 < ratio < math.inf]:
        raise ConfigError(
            f"{file}: a trial took {wrong[0]:g} times the planned step, which no step can; run "
            "`flava-ds plan --tune` again"
        )
    if not ratios:
        raise ConfigError(
            f"{file}: no trial has a forecast beside its measurement; run `flava-ds plan --tune` again"
        )
    if measured != gpu:
        raise ConfigError(
            f"{file} was measured on '{measured}', this plan is for '{gpu}'; use --gpu {measured}"
        )
    if in_precision != precision:
        raise ConfigError(
            f"{file} was measured in {in_precision}, this plan is for {precision}; tune that, or use "
            f"--training.precision {in_precision}"
        )
    return Calibration(min(ratios), statistics.median(ratios), max(ratios), len(ratios), gpu, file)
