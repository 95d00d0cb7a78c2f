"""What the DeepSpeed settings of a run mean for memory and communication. No deepspeed, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flava_ds.errors import ConfigError

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Zero:
    """The settings that matter; defaults are DeepSpeed 0.19's."""

    stage: int
    precision: str
    accumulation: int = 1
    offload: bool = False
    overlap: bool = True
    contiguous: bool = True
    bucket: int = 500_000_000
    """Elements of a bucket of gradients."""
    gather_bucket: int = 500_000_000
    multi_rank_all_reduce: bool = True
    prefetch: int = 50_000_000
    persistence: int = 100_000
    max_live: int = 1_000_000_000
    max_reuse: int = 1_000_000_000

    @property
    def width(self) -> int:
        """Bytes of a weight on the device."""
        return BYTES[self.precision]

    def keeps_gathered(self, trainable: int) -> bool:
        """Whether ZeRO-3 keeps all of the model's weights from the forward to the backward pass."""
        return trainable <= min(self.max_live, self.max_reuse)


def zero_of(settings: Mapping[str, Any], path: Path, precision: str, accumulation: int) -> Zero:
    """Reads the DeepSpeed JSON of `path`. Raises: ConfigError without an explicit stage."""
    zero = settings.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if not isinstance(zero, dict) or stage not in (0, 1, 2, 3):
        raise ConfigError(f'{path}: zero_optimization needs an explicit "stage" (0, 1, 2 or 3)')
    return Zero(
        stage=stage,
        precision=precision,
        accumulation=accumulation,
        offload=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        overlap=bool(zero.get("overlap_comm") or False),
        contiguous=bool(zero.get("contiguous_gradients", True)),
        bucket=int(zero.get("reduce_bucket_size", 5e8)),
        gather_bucket=int(zero.get("allgather_bucket_size", 5e8)),
        multi_rank_all_reduce=bool(zero.get("use_multi_rank_bucket_allreduce", True)),
        prefetch=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        persistence=int(zero.get("stage3_param_persistence_threshold", 1e5)),
        max_live=int(zero.get("stage3_max_live_parameters", 1e9)),
        max_reuse=int(zero.get("stage3_max_reuse_distance", 1e9)),
    )
