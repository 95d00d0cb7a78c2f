"""Bytes that a step's collectives move: counted in PyTorch's dispatcher, and predicted by theory.

The payload M of a collective is its whole tensor: what is reduced, gathered or sent. With the usual ring
algorithms each of w ranks then sends

    all_reduce 2 (w - 1) / w M        reduce_scatter, all_gather, reduce, broadcast (w - 1) / w M

so for G bytes of gradients and P bytes of weights, ZeRO makes each rank send

    stage 0      all_reduce G                           2 (w - 1) / w G
    stages 1, 2  reduce_scatter G, all_gather P         (w - 1) / w (G + P)
    stage 3      reduce_scatter G, all_gather P twice   (w - 1) / w (G + 2 P)

where stage 3 gathers for the forward pass and again for the backward pass, unless it keeps the weights.

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
"""Multiples of (w - 1) / w of the payload that leave a rank."""

PARTS = ("counts", "contrastive loss", "gradients", "gradient norm", "weights", "trace")
"""What a step's collectives are for; any other is "other". "trace": ZeRO-3 checks that all ranks call modules
in the same order.
"""


@dataclass(frozen=True)
class Call:
    """One collective: its purpose (of PARTS, or "other"), its name, its payload in bytes."""

    part: str
    collective: str
    payload: int


class CollectiveLog(TorchDispatchMode):
    """Records every collective that runs inside `with`. For measurements: it intercepts every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            collective, place = COLLECTIVES[func._schema.name.removeprefix("c10d::")]
            self.calls.append(Call(_part(collective), collective, _bytes(args[place])))
        return func(*args, **(kwargs or {}))


def _bytes(value: Any) -> int:
    """Adds up the bytes of tensors in nested lists."""
    return (
        value.numel() * value.element_size() if isinstance(value, torch.Tensor) else sum(map(_bytes, value))
    )


def _part(collective: str) -> str:
    """Finds out from the innermost known caller what a collective is for."""
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
    """Makes `steps` steps. Returns each one's kind, this rank's samples, and the collectives in order."""
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
    """Predicts a step's payloads from shapes: `samples` of `kind` on each rank, in fp32.

    Covers a step without log record or checkpoint. In stages 1 and 2 DeepSpeed sends gradients in an
    all_reduce of which each rank keeps its part, or, with use_multi_rank_bucket_allreduce off, in a reduce to
    each part's owner. For ZeRO-3 the previous step must have been of the same kind; a module that the forward
    pass calls twice may be gathered once more.
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
        return rows | {("gradients", "all_reduce"): trainable}  # idle parameters are sent as zeros
    if engine.stage == 3:
        # DeepSpeed's own norm, which is not used
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
    """Scatters gradients; gathers small weights after each update, large ones where they are used.

    Large weights that were dropped are gathered again for the backward pass.
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
    """Returns the bytes a rank sends per step for gradients and weights, according to the ZeRO paper."""
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
    """Returns the bytes of each parameter that a step of `kind` updates."""
    kinds, shapes = engine.module.users(), engine.shapes()
    return [4 * torch.Size(shapes[name]).numel() for name, used in kinds.items() if kind in used]
