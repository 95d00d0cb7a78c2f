"""What the DeepSpeed settings of a run mean for memory and communication. No deepspeed, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flava_ds.errors import ConfigError
from flava_ds.training.engine_config import check_offloading, offloads

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Zero:
    """The settings that matter; defaults are DeepSpeed 0.19's."""

    stage: int
    precision: str
    accumulation: int = 1
    fp32_sums: bool = False
    """Whether gradients are summed in fp32 in any precision."""
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

    @property
    def sum_width(self) -> int:
        """Bytes of a sum of gradients."""
        return 4 if self.fp32_sums else self.width

    def keeps_gathered(self, trainable: int) -> bool:
        """Whether ZeRO-3 keeps all of the model's weights from the forward to the backward pass."""
        return trainable <= min(self.max_live, self.max_reuse)


def zero_of(
    settings: Mapping[str, Any], path: Path, precision: str, accumulation: int, fp32_sums: bool = False
) -> Zero:
    """Reads the DeepSpeed JSON of `path`.

    Raises: ConfigError without an explicit stage, for a value that is no number or no true or false, and for
    offloading that cannot be trained with or planned.
    """
    zero = settings.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if not isinstance(zero, dict) or stage not in (0, 1, 2, 3):
        raise ConfigError(f'{path}: zero_optimization needs an explicit "stage" (0, 1, 2 or 3)')
    check_offloading(zero, str(path))
    if offloads(zero, "offload_param"):
        raise ConfigError(
            f"{path}: zero_optimization.offload_param cannot be planned; leave it out, and the plan "
            "has the weights on the device"
        )

    def elements(key: str, default: float) -> int:
        value = zero.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"{path}: zero_optimization.{key} is {value!r}; give a number of elements")
        return int(value)

    def switch(key: str, default: bool) -> bool:
        value = zero.get(key)
        if not isinstance(value, bool | None):
            raise ConfigError(f"{path}: zero_optimization.{key} is {value!r}; give true or false")
        return default if value is None else value

    return Zero(
        stage=stage,
        precision=precision,
        accumulation=accumulation,
        fp32_sums=fp32_sums,
        offload=offloads(zero, "offload_optimizer"),
        overlap=switch("overlap_comm", stage == 3),
        contiguous=switch("contiguous_gradients", True),
        bucket=elements("reduce_bucket_size", 5e8),
        gather_bucket=elements("allgather_bucket_size", 5e8),
        multi_rank_all_reduce=switch("use_multi_rank_bucket_allreduce", True),
        prefetch=elements("stage3_prefetch_bucket_size", 5e7),
        persistence=elements("stage3_param_persistence_threshold", 1e5),
        max_live=elements("stage3_max_live_parameters", 1e9),
        max_reuse=elements("stage3_max_reuse_distance", 1e9),
    )
