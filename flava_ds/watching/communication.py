"""Bytes that the collectives of a step move: counted where PyTorch dispatches them, and what theory says they
must be.

The payload M of a collective is its whole tensor: what is reduced, gathered or sent. With the usual ring
algorithms each of w ranks then sends

    all_reduce 2 (w - 1) / w M        reduce_scatter, all_gather, reduce, broadcast (w - 1) / w M

so ZeRO, for G bytes of gradients and P bytes of weights, costs a rank

    stage 0      all_reduce G                                                        2 (w - 1) / w G
    stages 1, 2  reduce_scatter G, all_gather P                                      (w - 1) / w (G + P)
    stage 3      all_gather P forward and, unless they are kept, backward; reduce_scatter G    (w - 1) / w (G
                                                                                               + 2 P)

Source: Rajbhandari et al., ZeRO (arXiv 1910.02054), section 7.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from flava_ds.training.engine import Engine
    from flava_ds.training.trainer import Trainer

COLLECTIVES = {
    "allreduce_": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
}
"""PyTorch's operators: the collective, and which argument is its payload."""

RING = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "reduce": 1, "broadcast": 1}
"""How often (w - 1) / w of the payload leaves a rank."""

PARTS = ("counts", "contrastive loss", "gradients", "gradient norm", "weights", "trace")
"""What the collectives of a step are for; any further one is "other". With a trace ZeRO-3 makes sure that all
ranks call modules in one order.
"""


@dataclass(frozen=True)
class Call:
    """One collective: what for (of PARTS, or "other"), which, its payload in bytes."""

    part: str
    collective: str
    payload: int


class CollectiveLog(TorchDispatchMode):
    """Notes every collective that is called inside `with`, whoever calls it. For measurements: it looks at
    every operator of the step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            collective, place = COLLECTIVES[func._schema.name.removeprefix("c10d::")]
            self.calls.append(Call(_part(collective), collective, _bytes(args[place])))
        return func(*args, **(kwargs or {}))


def _bytes(value: Any) -> int:
    """Adds up tensors in nested lists."""
    return (
        value.numel() * value.element_size() if isinstance(value, torch.Tensor) else sum(map(_bytes, value))
    )


def _part(collective: str) -> str:
    """Tells from the innermost caller what a collective is for."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == "flava_ds.ranks.distributed":
            return "counts"
        if name == "flava_kernels.contrastive":
            return "contrastive loss"
        if name == "flava_ds.training.engine":
            return "gradient norm"
        if name == "deepspeed.runtime.zero.utils":
            return "trace"
        if name.startswith("deepspeed.runtime") and "norm" in frame.f_code.co_name:
            return "gradient norm"
        if name.startswith("deepspeed.runtime"):
            return "weights" if collective == "all_gather" else "gradients"
        frame = frame.f_back
    return "other"


def measure(trainer: Trainer, steps: int) -> list[tuple[str, int, list[Call]]]:
    """Takes `steps` steps and returns each one's kind, this rank's samples, and collectives in order."""
    measured = []
    for step, batches in itertools.islice(enumerate(trainer.loader, start=trainer.first_step), steps):
        with CollectiveLog() as log:
            trainer.train_step(step, batches)
        measured.append((str(batches[0].kind), sum(batch.size for batch in batches), log.calls))
    return measured


def payloads(calls: Iterable[Call]) -> dict[tuple[str, str], int]:
    """Adds up the payloads by part and collective, in bytes."""
    total: Counter[tuple[str, str]] = Counter()
    for call in calls:
        total[call.part, call.collective] += call.payload
    return dict(total)


def sent(payload: Mapping[tuple[str, str], int], world_size: int) -> float:
    """Returns the bytes that leave a rank with ring algorithms."""
    return (
        sum(RING[collective] * size for (_, collective), size in payload.items())
        * (world_size - 1)
        / world_size
    )


def step_payloads(trainer: Trainer, kind: str, samples: int) -> dict[tuple[str, str], int]:
    """Computes, from shapes alone, the payloads of a step without log line or checkpoint: `samples` of `kind`
    on each rank, in fp32.

    Gradients of stages 1 and 2 travel as DeepSpeed sends them: an all_reduce, of which each rank keeps its
    part, or with use_multi_rank_bucket_allreduce off a reduce to each part's owner. ZeRO-3 is described as it
    is when the step before was of the same kind; a module that the forward pass calls twice may be gathered
    once more.
    """
    world, engine, task = trainer.world.size, trainer.engine, trainer.task
    rows = {
        ("counts", "all_gather"): world * 8 * (4 + len(task.objectives)),
        ("gradient norm", "all_reduce"): 4,
    }
    for objective in task.pooled(kind).values():
        rows["contrastive loss", "all_gather"] = sum(objective.exchanged_bytes(task.model, world * samples))
    used, trainable = sum(_bytes_used(engine, kind)), trainable_bytes(trainer)
    if engine.stage == 0:
        return rows | {("gradients", "all_reduce"): trainable}  # idle parameters travel as zeros
    if engine.stage == 3:
        # DeepSpeed's own, which nobody reads
        rows["gradient norm", "all_reduce"] += 8 * len(engine.deepspeed.optimizer.fp16_groups)
        return rows | _zero3_payloads(engine, kind, world)
    collective = (
        "all_reduce"
        if engine.settings["zero_optimization"].get("use_multi_rank_bucket_allreduce", True)
        else "reduce"
    )
    groups = [
        4 * sum(parameter.numel() for parameter in group) for group in engine.deepspeed.optimizer.bit16_groups
    ]
    # two elements of every rank
    return rows | {("gradients", collective): used, ("weights", "all_gather"): _padded(groups, 8 * world)}


def _zero3_payloads(engine: Engine, kind: str, world: int) -> dict[tuple[str, str], int]:
    """Gradients are scattered; small weights are gathered after each update, large ones where they are used,
    again for the backward pass if dropped.
    """
    settings = engine.settings["zero_optimization"]
    threshold = 4 * settings["stage3_param_persistence_threshold"]
    sizes, used = (
        [4 * torch.Size(shape).numel() for shape in engine.shapes().values()],
        _bytes_used(engine, kind),
    )
    kept = sum(sizes) <= 4 * min(
        settings["stage3_max_live_parameters"], settings["stage3_max_reuse_distance"]
    )
    small, large = (
        [size for size in sizes if size <= threshold],
        [size for size in used if size > threshold],
    )
    weights = _padded(small, 4 * world) + (1 if kept else 2) * _padded(large, 4 * world)
    return {("gradients", "reduce_scatter"): _padded(used, 4 * world), ("weights", "all_gather"): weights}


def _padded(sizes: Iterable[int], multiple: int) -> int:
    """Adds up sizes, each rounded up to a multiple."""
    return sum(math.ceil(size / multiple) * multiple for size in sizes)


def paper_bytes(trainer: Trainer, kind: str) -> float:
    """Returns what the ZeRO paper lets a rank send per step for gradients and weights, in bytes."""
    used, world = sum(_bytes_used(trainer.engine, kind)), trainer.world.size
    weights = trainable_bytes(trainer)  # stages 1 and 2 gather idle ones too
    return (
        (world - 1)
        / world
        * {0: 2 * used, 1: used + weights, 2: used + weights, 3: 3 * used}[trainer.engine.stage]
    )


def trainable_bytes(trainer: Trainer) -> int:
    """Returns the bytes of all trainable parameters in fp32."""
    kinds, shapes = trainer.engine.module.users(), trainer.engine.shapes()
    return 4 * sum(torch.Size(shapes[name]).numel() for name in kinds)


def _bytes_used(engine: Engine, kind: str) -> list[int]:
    """Returns the bytes of each parameter that a step of `kind` moves."""
    kinds, shapes = engine.module.users(), engine.shapes()
    return [4 * torch.Size(shapes[name]).numel() for name, used in kinds.items() if kind in used]
