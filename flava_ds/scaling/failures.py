"""Failures of large runs: published rates, and the checkpoint interval after Daly."""

from __future__ import annotations

import math
from dataclasses import dataclass

LLAMA3 = {
    "GPU": 148,
    "GPU memory": 72,
    "software": 54,
    "switch or cable": 35,
    "host maintenance": 32,
    "GPU SRAM": 19,
    "GPU system processor": 17,
    "network adapter": 7,
    "NCCL watchdog": 7,
    "silent corruption": 6,
    "heat": 6,
    "disk": 3,
    "power supply": 3,
    "others": 10,
}
"""Unexpected interruptions of 54 days on 16,384 H100. Source: The Llama 3 Herd of Models, Table 5."""
LLAMA3_DAYS, LLAMA3_GPUS = 54, 16_384


@dataclass(frozen=True)
class Rate:
    """How often a cluster fails."""

    name: str
    per_thousand_node_days: float
    """Failures of nodes of 8 GPUs, which grow with the cluster."""
    per_run_day: float = 0.0
    """Failures of software and users, which do not."""
    source: str = ""

    def per_second(self, nodes: float) -> float:
        """Returns the failures of a run on `nodes` nodes of 8 GPUs per second."""
        return (self.per_thousand_node_days * nodes / 1000 + self.per_run_day) / 86_400


def _llama3_rate() -> float:
    return 1000 * sum(LLAMA3.values()) / (LLAMA3_DAYS * LLAMA3_GPUS / 8)


RATES = {
    rate.name: rate
    for rate in (
        Rate("llama3", _llama3_rate(), source="Llama-3 405B, 16,384 H100: 419 interruptions in 54 days"),
        Rate("rsc", 6.50, source="Meta RSC-1, 150 M A100-hours (Kokolis et al., HPCA 2025)"),
        Rate("rsc-small", 6.50, 2.2, "Meta RSC-1, with its 7.9 h between failures at 1,024 GPUs"),
        Rate("opt", 15.0, source="OPT-175B: 90 restarts on 992 A100"),
        Rate("none", 0.0, source="no failures"),
    )
}


@dataclass(frozen=True)
class Recovery:
    """What a checkpoint and a failure cost, in seconds."""

    stands: float
    """Training stands while a checkpoint is copied to host memory."""
    writes: float
    """Until the copy is on disk; a failure before that falls back to the checkpoint before."""
    slower: float
    """Share by which steps are slower meanwhile."""
    detection: float
    """Until the run knows of a failure; at most engine.communication_timeout_s."""
    restart: float
    """Until it takes its next step: new nodes, start-up, reading the checkpoint."""

    @property
    def cost(self) -> float:
        """Training time that one checkpoint costs."""
        return self.stands + self.slower * self.writes


def daly_interval(cost: float, mean_time: float) -> float:
    """Returns the time between checkpoints that loses least, in s.

    Source: Daly 2006, A higher order estimate of the optimum checkpoint interval, equation 37.
    """
    if math.isinf(mean_time):
        return math.inf
    if cost >= 2 * mean_time:
        return mean_time
    ratio = cost / (2 * mean_time)
    return math.sqrt(2 * cost * mean_time) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


def best_interval(recovery: Recovery, mean_time: float) -> float:
    """Returns Daly's interval for an asynchronous checkpoint, never shorter than its writing takes."""
    return max(daly_interval(max(recovery.cost, 1e-3), mean_time), recovery.writes, 1.0)
