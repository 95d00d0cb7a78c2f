"""What no formula gives: rates and overheads as ranges, each with its source.

A plan is computed three times, with all of them at their middle, at their worse and at their better end. That
gives every number of a forecast its range. The ends are judged so that about nine of ten cases lie between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flava_ds.scaling.host_rates import HostRates


@dataclass(frozen=True)
class Range:
    """A number with its worse and better end."""

    worse: float
    middle: float
    better: float
    source: str


@dataclass(frozen=True)
class Assumptions:
    """One value of each range."""

    product_share: float
    """Of the best GEMM's rate, reached by a product whose shape fills the device."""
    attention_share: float
    """Of the peak, reached by attention."""
    convolution_share: float
    """Of the peak, reached by the codebook."""
    bandwidth_share: float
    """Of the memory's peak, reached by kernels that only move data."""
    launch_us: float
    """Host time of one plain operator."""
    custom_us: float
    """Host time of one operator of ours, forward or backward."""
    beside_us: float
    """Host time beside each operator: modules, autograd, DeepSpeed's hooks on gradients, the update."""
    network_share: float
    """Of the modelled bandwidth of collectives."""
    loader_rate: float
    """Pictures that one loader process decodes, crops and masks per second."""
    gloo_hop_us: float
    """Of the gather of counts between processes on the host, per rank."""
    context_gib: float
    """CUDA context and NCCL's communicators."""
    fragmentation: float
    """Memory that the allocator reserves beyond what is allocated, as a share of it."""
    host_link_gb: float
    """GB/s between a GPU and its host's memory: an offloaded update, and the copy of a checkpoint."""
    checkpoint_gb: float
    """GB/s at which a machine writes its part of a checkpoint."""
    checkpoint_slows: float
    """Share by which steps are slower meanwhile."""
    detection_s: float
    """Until a run knows of a failure, at most."""
    restart_s: float
    """Until it takes its next step: new machines, start-up, reading the checkpoint."""
    device_factor: float = 1.0
    """Measured over planned time of device and host, where a tuning has found it (calibration.py)."""


RANGES = {
    "product_share": Range(0.60, 0.78, 0.95, "whole steps of llm.c, MPT and NeMo against the best GEMM"),
    "attention_share": Range(0.15, 0.30, 0.45, "FlashAttention-2 at these lengths; ours are unmeasured"),
    "convolution_share": Range(0.15, 0.30, 0.50, "judgement: bf16 convolutions of 64 to 2,048 channels"),
    "bandwidth_share": Range(0.50, 0.68, 0.79, "copies reach 0.72 to 0.79 (Bekman); small kernels less"),
    "launch_us": Range(10, 7.5, 5, "PyTorch's eager launch"),
    "custom_us": Range(
        70, 50, 40, "30 measured without launches (docs/kernels.md), and 1.4 launches of 30, 15 and 8"
    ),
    "beside_us": Range(
        31, 22, 11, "whole steps without launches (docs/kernels.md); half of it on a core twice as fast"
    ),
    "network_share": Range(0.65, 0.90, 1.0, "published busbw against benchmarks/plan_validation.py's model"),
    "loader_rate": Range(350, 699, 737, "benchmarks/results/data_loader.json, two views with masks"),
    "gloo_hop_us": Range(150, 50, 20, "judgement; loopback shows 0.6 ms for two busy ranks"),
    "context_gib": Range(2.6, 2.2, 1.8, "0.5 to 0.9 GiB context, about 1.5 GiB NCCL (Bekman)"),
    "fragmentation": Range(0.33, 0.12, 0.05, "GMLake: 15 % on average, up to 33 % on eight LLMs"),
    "host_link_gb": Range(12, 25, 50, "judgement: PCIe 5 x16 moves 55 measured, PCIe 4 half; shared by two"),
    "checkpoint_gb": Range(0.3, 1, 5, "judgement: a shared file system, each machine's part of it; NVMe"),
    "checkpoint_slows": Range(0.05, 0.02, 0, "judgement: copying and writing beside the steps"),
    "detection_s": Range(600, 600, 60, "engine.communication_timeout_s; a process that dies is seen sooner"),
    "restart_s": Range(900, 300, 120, "judgement: a queue with spare machines; seconds on one machine"),
}


def _at(end: str) -> Assumptions:
    return Assumptions(**{name: getattr(found, end) for name, found in RANGES.items()})


MIDDLE, WORSE, BETTER = _at("middle"), _at("worse"), _at("better")


def of_host(rates: HostRates, flops: float) -> Assumptions:
    """Returns what measured rates leave of the assumptions; `flops` is the rate of the best product."""
    launch = 1e6 * rates.per_call
    return replace(
        MIDDLE,
        convolution_share=rates.convolution_flops / flops,
        launch_us=launch,
        custom_us=launch,
        beside_us=0.0,
        gloo_hop_us=1e6 * rates.collective("all_gather", 0.0),
        context_gib=0.0,
        fragmentation=0.0,
    )
