"""Milliseconds of a step by part: products at their shapes, memory traffic, host, communication, update."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from flava_ds.scaling.assumptions import Assumptions
from flava_ds.scaling.collectives import gather_of_counts, seconds
from flava_ds.scaling.hardware import Cluster, Gpu
from flava_ds.scaling.traffic import payloads
from flava_ds.scaling.work import KindWork, ModelWork, Operator
from flava_ds.scaling.zero import Zero

TILES = ((128, 256, 1.0), (128, 128, 0.9), (64, 128, 0.7), (64, 64, 0.55))
"""Rows and columns of a product's tile, and the rate inside of it relative to the largest."""
SPLIT_INNER = 2048
"""A product with a longer inner edge can be split along it, so that few tiles still fill the device."""
PARTS = (
    "matrix products",
    "attention",
    "memory-bound kernels",
    "image codebook",
    "second contrastive pass",
    "waiting for the host",
    "stragglers",
    "gradients, exposed",
    "weights",
    "contrastive gather",
    "counts",
    "optimizer",
)
PRODUCTS, TORCH, ATTENTION = "matrix products", "other operators of torch", "varlen_attention"
PART_OF_KERNEL = {PRODUCTS: PRODUCTS, ATTENTION: "attention"}
"""The part of the step that a kernel's time counts as; of all others "memory-bound kernels"."""
COMMUNICATION = ("gradients, exposed", "weights", "contrastive gather", "counts")


@dataclass(frozen=True)
class KindTime:
    """One optimizer step of one source."""

    source: str
    ms: Mapping[str, float]
    """By part of PARTS; they add up to the step."""
    host_ms: float
    """Time that the host needs to launch the step's operators; it overlaps with the device."""
    hidden_ms: float
    """Communication that overlaps with the backward pass."""
    kernels: Mapping[str, float]
    """ms on the device by what a profile shows: matrix products, each operator of ours, the rest of torch."""

    @property
    def total(self) -> float:
        """The step in ms."""
        return sum(self.ms.values())


def product_share(rows: float, columns: float, inner: float, units: int) -> float:
    """Returns how much of the best rate a product's shape allows: whole tiles in whole waves on all units."""
    best = 0.0
    for height, width, rate in TILES:
        tiles = math.ceil(rows / height) * math.ceil(columns / width)
        splits = max(1, min(units // max(1, tiles), int(inner // SPLIT_INNER))) if tiles < units else 1
        waves = math.ceil(tiles * splits / units)
        filled = rows * columns / (height * width) * splits
        best = max(best, rate * filled / (waves * units))
    return min(1.0, best)


def operator_seconds(
    operator: Operator, samples: int, pooled: int, gpu: Gpu, assumed: Assumptions
) -> dict[str, float]:
    """Returns the time of an operator's calls on the device by kernel: PRODUCTS, TORCH or our operator.

    An operator of ours that has matrix products also has a kernel that passes its tensors through memory once
    more.
    """
    flops, moved = operator.flops.at(samples, pooled), operator.bytes.at(samples, pooled)
    if gpu.rates is not None:
        took = operator.count * gpu.rates.operator(operator.name, moved, flops)
        return {PRODUCTS if operator.is_product else TORCH: took}
    by_memory = operator.count * moved / (gpu.memory_bandwidth * assumed.bandwidth_share)
    name = operator.name.removesuffix("_backward").removesuffix("_forward") if operator.custom else TORCH
    if operator.rows is not None and operator.columns is not None and operator.inner is not None:
        rows, columns, inner = (
            edge.at(samples, pooled) for edge in (operator.rows, operator.columns, operator.inner)
        )
        if operator.flops.pair:  # of each sample with those of all ranks, which were its own when measured
            if operator.columns.each:
                columns = flops / (2 * rows * inner)
            else:
                inner = flops / (2 * rows * columns)
        peak = max(gpu.flops, gpu.tf32) if operator.name.startswith("convolution") else gpu.flops
        rate = peak * gpu.best_gemm * assumed.product_share * product_share(rows, columns, inner, gpu.units)
        by_flops = operator.count * flops / rate
        if operator.custom:
            return {PRODUCTS: by_flops, name: by_memory}
        return {PRODUCTS: max(by_flops, by_memory)}
    by_flops = operator.count * flops / (gpu.flops * assumed.attention_share)
    return {name: max(by_flops, by_memory)}


def device_seconds(
    work: KindWork, samples: int, pooled: int, gpu: Gpu, assumed: Assumptions
) -> dict[str, dict[str, float]]:
    """Returns the device's time for a micro-step by phase and kernel, see operator_seconds."""
    found: dict[str, dict[str, float]] = {"forward": {}, "backward": {}}
    for operator in work.operators:
        for kernel, time in operator_seconds(operator, samples, pooled, gpu, assumed).items():
            before = found[operator.phase].get(kernel, 0.0)
            found[operator.phase][kernel] = before + assumed.device_factor * time
    return found


def host_seconds(work: KindWork, assumed: Assumptions) -> float:
    """Returns the host's time for a micro-step, the update included; it does not depend on the batch."""
    own = {True: assumed.custom_us, False: assumed.launch_us}
    us = sum(operator.count * (own[operator.custom] + assumed.beside_us) for operator in work.operators)
    return 1e-6 * assumed.device_factor * us


def exposed_reduction(
    payload: float,
    collective: str,
    bucket: float,
    backward: float,
    cluster: Cluster,
    share: float,
    overlap: bool,
) -> tuple[float, float]:
    """Returns (exposed, hidden) seconds of reducing gradients bucket by bucket.

    Gradients arrive evenly over the backward pass. A bucket is reduced when it is full, one after the other;
    the last, partly filled one only after the backward pass.
    """
    if payload <= 0 or cluster.gpus == 1:
        return 0.0, 0.0
    end, busy, done = 0.0, 0.0, 0.0
    while done < payload:
        size = min(bucket, payload - done)
        done += size
        ready = backward * done / payload if overlap and size == bucket else backward
        time = seconds(collective, size, cluster, share)
        end, busy = max(end, ready) + time, busy + time
    exposed = max(0.0, end - backward)
    return exposed, max(0.0, busy - exposed)  # a rounding error below 0 would be shown as -0.00


def kind_time(
    model: ModelWork,
    source: str,
    zero: Zero,
    cluster: Cluster,
    samples: int,
    assumed: Assumptions,
    objectives: int,
) -> KindTime:
    """Returns the time of an optimizer step of `source` with micro-batches of `samples` on each rank."""
    work, gpu, turns = model.kinds[source], cluster.gpu, zero.accumulation
    pooled = samples * cluster.gpus * turns
    phases = device_seconds(work, samples, pooled, gpu, assumed)
    ms = dict.fromkeys(PARTS, 0.0)
    kernels: dict[str, float] = {}
    for phase in phases.values():
        for kernel, time in phase.items():
            kernels[kernel] = kernels.get(kernel, 0.0) + 1e3 * time * turns
            ms[PART_OF_KERNEL.get(kernel, "memory-bound kernels")] += 1e3 * time * turns
    peak = gpu.flops if zero.precision == "bf16" else gpu.tf32  # the codebook computes in one of the two
    conv = work.codebook_flops.at(samples) / (peak * assumed.convolution_share)
    ms["image codebook"] = 1e3 * assumed.device_factor * conv * turns
    forward, backward = (sum(phases[phase].values()) for phase in ("forward", "backward"))
    if turns > 1 and work.exchanged:
        ms["second contrastive pass"] = 1e3 * forward * work.features_share * turns
    device, host = sum(ms.values()), 1e3 * host_seconds(work, assumed) * turns
    beside = gpu.rates is None  # a core does its own Python
    ms["waiting for the host"] = max(0.0, host - device) if beside else host
    compute = max(device, host) if beside else device + host
    if cluster.gpus > 1:
        spread = work.token_share * work.length_deviation / math.sqrt(samples * turns)
        ms["stragglers"] = compute * spread * expected_largest(cluster.gpus)
    stretch = compute / device if device else 1.0
    hidden = _communication(
        ms, model, source, zero, cluster, samples, backward * stretch, assumed, objectives
    )
    ms["optimizer"] = 1e3 * update_seconds(model, work, zero, cluster, assumed)
    return KindTime(source, ms, host, 1e3 * hidden, kernels)


@functools.cache
def expected_largest(number: int) -> float:
    """Returns the expected largest of so many standard normal numbers: 0 of one, 1.42 of 8, 3.24 of 1,000.

    The mean of its quantiles, whose shares p of one number are p ** number of all; to about 0.2 %.
    """
    normal, parts = statistics.NormalDist(), 2000
    return statistics.fmean(normal.inv_cdf(((i + 0.5) / parts) ** (1 / number)) for i in range(parts))


def _communication(
    ms: dict[str, float], model: ModelWork, source: str, zero: Zero, cluster: Cluster, samples: int,
    backward: float, assumed: Assumptions, objectives: int,
) -> float:  # fmt: skip
    """Fills in the parts that are communication; returns the seconds that are hidden."""
    if cluster.gpus == 1:
        return 0.0
    sizes = payloads(model, source, zero, cluster.gpus, samples * zero.accumulation, objectives)
    share, hidden = assumed.network_share, 0.0
    for (part, collective), payload in sizes.items():
        if part == "gradients":
            times = zero.accumulation if zero.stage >= 2 else 1
            bucket = zero.bucket * zero.width
            overlap = zero.overlap and zero.stage > 0 and cluster.gpu.rates is None
            shown, under = exposed_reduction(payload, collective, bucket, backward, cluster, share, overlap)
            ms["gradients, exposed"] += 1e3 * shown * times
            hidden += under * times
        elif part == "weights":
            calls = _gathers(model, source, zero)
            ms["weights"] += 1e3 * calls * seconds(collective, payload / calls, cluster, share)
        elif part == "contrastive loss":
            ms["contrastive gather"] += 1e3 * seconds(collective, payload, cluster, share)
        elif part == "counts":
            ms["counts"] += 1e3 * gather_of_counts(cluster.gpus, assumed.gloo_hop_us)
        else:
            ms["gradients, exposed"] += 1e3 * seconds(collective, payload, cluster, share)
    return hidden


def _gathers(model: ModelWork, source: str, zero: Zero) -> int:
    """Returns in how many calls weights are gathered: by bucket, in ZeRO-3 by tensor."""
    if zero.stage < 3:
        return sum(math.ceil(group.elements / zero.gather_bucket) for group in model.groups)
    used = model.tensors_used_by(model.kinds[source].kind)
    return max(1, sum(n > zero.persistence for n in used))


def update_seconds(
    model: ModelWork, work: KindWork, zero: Zero, cluster: Cluster, assumed: Assumptions
) -> float:
    """Returns the optimizer's time: it reads and writes master weights and moments, and reads gradients."""
    own = model.used_by(work.kind) / (1 if zero.stage == 0 else cluster.gpus)
    moved = own * (8 * (1 + model.moments) + 4 + 2 * zero.width)
    if cluster.gpu.rates is not None:
        flat = model.trainable / (1 if zero.stage == 0 else cluster.gpus)
        passed = GRADIENT_PASSES * zero.width * model.used_by(work.kind)
        return cluster.gpu.rates.beyond.seconds(moved + FLAT_BYTES * flat + passed)
    own_rate = cluster.gpu.memory_bandwidth * assumed.bandwidth_share
    bandwidth = 1e9 * assumed.host_link_gb if zero.offload else own_rate
    return assumed.device_factor * moved / bandwidth


FLAT_BYTES = 18
"""Bytes moved for each element by which DeepSpeed makes flat fp32 gradients and copies weights back; for all
groups, idle ones included. Counted by tracing an update in ZeRO-1 and bf16."""
GRADIENT_PASSES = 5
"""How often a gradient moves on its way from autograd through its bucket, counted in the same way."""
