"""What the planner expects of a trial, to stand beside its measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flava_ds.autotuning.search import Trial, Tuner
from flava_ds.errors import ConfigError
from flava_ds.recipes import resolve
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.facts import Run
from flava_ds.scaling.hardware import DEFAULT_NETWORK, NETWORKS, Cluster, Gpu
from flava_ds.scaling.plan import Estimate, Setting, plan
from flava_ds.scaling.setting import Measured, setting_of
from flava_ds.scaling.sweep_cost import cpu_rate, on_this_machine

MS_PER_HOUR = 3.6e6


@dataclass
class Guess:
    """Expects steps of a tuner's trials: on a GPU that the planner knows, the forecast of a plan; on a CPU,
    FLOPs over a rate, which is a wide guess until the first trial has shown one.
    """

    tuner: Tuner
    gpu: Gpu
    captions: str | None
    seen: Mapping[str, float] = field(default_factory=dict)
    """`flops` and `seconds` of the first step that was measured on a CPU."""

    def expected(self, trial: Trial) -> Estimate | None:
        """Returns the ms of a mean step with a trial's settings; None if the planner cannot plan them.

        Looks at the trial's measurement only for the trials after it.
        """
        try:
            setting = self.setting(trial)
        except ConfigError:
            return None
        if self.gpu.name != CPU:
            return plan(setting).estimate(lambda figures: figures.step_ms)
        ranks = self.tuner.ranks
        flops = ranks * setting.mean(lambda source: setting.flops(source, real=True))
        hours, _ = on_this_machine(flops, self.gpu.flops, self.seen)
        if not self.seen and trial.step_ms is not None:
            self.seen = {"flops": flops, "seconds": trial.step_ms / 1e3}
        return Estimate(*(MS_PER_HOUR * end for end in (hours.low, hours.middle, hours.high)))

    def setting(self, trial: Trial) -> Setting:
        """Returns the planner's setting of a trial. Raises: ConfigError."""
        tuner, machine = self.tuner, Cluster(self.gpu, NETWORKS[DEFAULT_NETWORK], self.tuner.ranks, 1)
        run = Run(
            tuner.recipe,
            [*tuner.overrides, *trial.words],
            tuner.plugins,
            lambda words: resolve(tuner.recipe, words),
        )
        return setting_of(run.facts(), machine, Measured(run, lengths_of(run, self.captions)))


CPU = "cpu"


def this_cpu(precision: str) -> Gpu:
    """Returns this machine's cores in the place of a GPU, of which nothing but the rate counts: that of
    matrix products in the run's precision, measured now.
    """
    rate = cpu_rate(precision)
    return Gpu(CPU, "a CPU", rate, 0.0, 0.0, rate, rate, 1, 1.0, 0.0, 0.0)
