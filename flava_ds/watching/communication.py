"""Bytes that a step's collectives move, counted in PyTorch's dispatcher; flava_ds/scaling/traffic.py predicts
them.

The payload M of a collective is its whole tensor: what is reduced, gathered or sent. With the usual ring
algorithms each of w ranks then sends

    all_reduce 2 (w - 1) / w M        reduce_scatter, all_gather, reduce, broadcast (w - 1) / w M

and of a message to one rank all of it.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
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
    "send": ("send", 0),
}
"""PyTorch's operators: the collective, and which argument is its payload."""

RING = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "reduce": 1, "broadcast": 1}
"""Multiples of (w - 1) / w of the payload that leave a rank, of what is not sent to one rank."""

PARTS = ("counts", "contrastive loss", "gradients", "gradient norm", "weights", "trace")
"""What a step's collectives are for; any other is "other". "trace": ZeRO-3 checks that all ranks call modules
in the same order.
"""


@dataclass(frozen=True)
class Call:
    """One collective or message: its purpose (of PARTS, or "other"), its name, its payload in bytes."""

    part: str
    collective: str
    payload: int


class CollectiveLog(TorchDispatchMode):
    """Records every collective that runs inside `with`. For measurements: it intercepts every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d" and not func._schema.name.startswith("c10d::recv"):
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
    frame: FrameType | None = sys._getframe(1)
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
    share = (world_size - 1) / world_size
    return sum(
        size if collective == "send" else RING[collective] * share * size
        for (_, collective), size in payload.items()
    )
