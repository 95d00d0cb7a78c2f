"""Bytes of one rank's device, by part and moment, as DeepSpeed 0.19 allocates them.

A step has three moments: the end of the forward pass with the first bucket ("forward"), the fullest point
of the backward pass ("backward") and the optimizer's update ("update"). A rank needs the largest of them over
all kinds of step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from flava_ds.scaling.assumptions import Assumptions
from flava_ds.scaling.hardware import GIB, USABLE, Gpu
from flava_ds.scaling.work import KindWork, ModelWork, ParameterGroup
from flava_ds.scaling.zero import Zero

ZERO0_PIECE = 500_000_000
"""Elements of the flat copies in which ZeRO-0 reduces gradients."""
LOGITS_BYTES = 96 * 2**20
"""Of the similarity matrix of the contrastive loss on a GPU, at most: its features are fp32."""


@dataclass(frozen=True)
class Moment:
    """What lies on the device at one moment of a step, in bytes by part."""

    source: str
    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())


def states(model: ModelWork, zero: Zero, world: int) -> dict[str, float]:
    """Returns what stays between steps: weights, gradients and optimizer, in bytes by part."""
    p, width = model.trainable, zero.width
    found = {"frozen weights": float(width * model.frozen)}
    if zero.stage == 0:
        return found | {"weights": 4.0 * p, "optimizer": 4.0 * model.moments * p}
    own = 4 * (1 + model.moments) * p / world
    found["optimizer"] = 0.0 if zero.offload else own
    if zero.stage == 3:
        small = sum(n for group in model.groups for n in group.tensors if n <= zero.persistence)
        found["weights"] = width * (p / world + small)
    else:
        found["weights"] = float(width * p)
    return found


def host_states(model: ModelWork, zero: Zero, world: int) -> float:
    """Returns the pinned memory on the host that offloading takes for one rank, in bytes."""
    return (4 * (2 + model.moments) + 2) * model.trainable / world if zero.offload else 0.0


def gradients(model: ModelWork, work: KindWork, zero: Zero, world: int) -> dict[str, float]:
    """Returns what the backward pass allocates for gradients, in bytes by part."""
    used, width = model.used_by(work.kind), zero.width
    if zero.stage == 0:
        return {"gradients": 4.0 * used}
    exactly = zero.stage == 3 or zero.sum_width > width  # then DeepSpeed keeps the rank's elements alone
    kept = model.trainable / world if exactly else partition_of_gradients(model.groups, world)
    found = {"gradients": zero.sum_width * kept if not zero.offload else 0.0}
    if zero.stage == 1 and zero.accumulation > 1:
        found["accumulated gradients"] = float(zero.sum_width * used)
    buffers = (2 if zero.overlap and zero.stage < 3 else 1) if zero.contiguous else 0
    in_bucket = zero.sum_width if zero.stage == 1 else width
    found["gradient buckets"] = float(buffers * in_bucket * zero.bucket)
    largest = largest_tensor(model.groups, work.kind)
    # a tensor that no bucket can hold travels alone
    found["flat copy of gradients"] = float(width * min(max(zero.bucket, largest), used))
    return found


@functools.lru_cache
def largest_tensor(groups: tuple[ParameterGroup, ...], kind: str) -> int:
    """Returns the elements of the largest tensor that a step of `kind` gives a gradient."""
    return max((n for group in groups if kind in group.kinds for n in group.tensors), default=0)


@functools.lru_cache
def partition_of_gradients(groups: tuple[ParameterGroup, ...], world: int) -> int:
    """Returns the elements of gradients that the fullest rank of ZeRO-1 or 2 keeps.

    DeepSpeed keeps whole tensors of every group, whatever the kind: all that overlap its slice.
    """
    ranks = [0] * world
    for group in groups:
        slice_of_rank, begins = group.elements / world, 0
        for n in group.tensors:
            first, last = int(begins // slice_of_rank), int((begins + n - 1) // slice_of_rank)
            for rank in range(first, min(last, world - 1) + 1):
                ranks[rank] += n
            begins += n
    return max(ranks)


def gathered(model: ModelWork, work: KindWork, zero: Zero) -> dict[str, float]:
    """Returns what ZeRO-3 holds of other ranks' weights, in bytes."""
    if zero.stage != 3:
        return {}
    large = [n for n in model.tensors_used_by(work.kind) if n > zero.persistence]
    live = sum(large) if zero.keeps_gathered(model.trainable) else max(large, default=0) + zero.prefetch
    return {"gathered weights": float(zero.width * min(live, sum(large)))}


def update_transient(model: ModelWork, work: KindWork, zero: Zero, world: int) -> float:
    """Returns the bytes that updating the largest group copies: this rank's gradients, in fp32 too."""
    largest = max((group.elements for group in model.groups if work.kind in group.kinds), default=0)
    if zero.stage == 0 or zero.offload:
        return 0.0
    return (zero.sum_width + (4 if zero.sum_width < 4 else 0)) * largest / world


def moments(
    model: ModelWork, source: str, zero: Zero, world: int, samples: int, assumed: Assumptions
) -> list[Moment]:
    """Returns the three moments of a micro-step of `samples` on this rank's device."""
    work = model.kinds[source]
    fixed = states(model, zero, world) | {
        "image codebook": (2 if zero.precision == "bf16" else 4) * float(model.codebook),
        "batches": 2 * work.batch_bytes.at(samples),  # the next one is on its way
    }
    pooled = sum(amount.at(samples * world) for amount in work.exchanged.values())
    if pooled:
        whole_matrix = 4 * samples * samples * world
        fixed["pooled features"] = 2 * pooled + min(LOGITS_BYTES, whole_matrix)
    grads, gathers = gradients(model, work, zero, world), gathered(model, work, zero)
    first = {name: size for name, size in grads.items() if name != "flat copy of gradients"}
    if zero.stage < 3:  # which keeps a buffer of gradients all the time
        first["gradients"] = 0.0
    summed = grads.pop("accumulated gradients", 0.0)  # in the last pass they go while the rank's own come
    if summed:
        grads["accumulated gradients"] = max(0.0, summed - grads["gradients"])
    activations = work.peak.at(samples)
    if zero.stage == 0:  # gradients come while activations go
        activations = max(0.0, work.peak_with_gradients.at(samples) - grads["gradients"])
    found = [
        Moment(source, "forward", fixed | gathers | first | {"activations": work.saved.at(samples)}),
        Moment(source, "backward", fixed | gathers | grads | {"activations": activations}),
    ]
    kept = {"gradients": grads["gradients"]}
    if zero.stage == 3:
        kept["gradient buckets"] = grads["gradient buckets"]
    if zero.stage == 0 and world > 1:  # reduces after the backward pass, idle parameters as zeros
        copied = min(model.trainable, ZERO0_PIECE)
        kept = {"gradients": 4.0 * model.trainable, "flat copy of gradients": 4.0 * copied}
    transient = update_transient(model, work, zero, world)
    found.append(Moment(source, "update", fixed | kept | {"update": transient}))
    return [_with_overhead(moment, assumed) for moment in found]


def _with_overhead(moment: Moment, assumed: Assumptions) -> Moment:
    """Adds what torch's allocator does not see, and what it loses."""
    extra = {
        "context and NCCL": assumed.context_gib * GIB,
        "fragmentation": assumed.fragmentation * moment.total,
    }
    return Moment(moment.source, moment.name, {**moment.parts, **extra})


def peak(
    model: ModelWork, zero: Zero, world: int, samples: Mapping[str, int], assumed: Assumptions
) -> Moment:
    """Returns the fullest moment over all kinds of step; `samples` of a micro-batch by source."""
    return max(
        (m for source in model.kinds for m in moments(model, source, zero, world, samples[source], assumed)),
        key=lambda moment: moment.total,
    )


def capacity(gpu: Gpu) -> float:
    """Returns the bytes that a process can use."""
    return gpu.memory_gib * GIB * USABLE


def largest_that_fits(
    model: ModelWork, source: str, zero: Zero, world: int, gpu: Gpu, assumed: Assumptions
) -> int:
    """Returns the largest micro-batch of a source that fits, 0 if none does."""

    def fits(samples: int) -> bool:
        return max(m.total for m in moments(model, source, zero, world, samples, assumed)) <= capacity(gpu)

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 2**24:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
