"""Tiles of the contrastive loss's kernels, by architecture and dtype, and how they multiply."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flava_kernels.triton_ops.launch import architecture


@dataclass(frozen=True)
class Tiles:
    """Rows, columns and features per step, the launch options, and how products are formed.

    "ieee" multiplies operands as they are; 16-bit ones on the matrix units, which accumulate in fp32.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    precision: str = "ieee"


HALF = {
    "sm_80": Tiles(128, 128, 32, 8, 4),
    "sm_90": Tiles(128, 128, 64, 8, 3),
    "sm_100": Tiles(128, 128, 64, 8, 2),
    "gfx942": Tiles(128, 128, 64, 8, 2),
}
"""For bf16 and fp16. On sm_80, 64 features per step spill registers with Triton 3.6, and cp.async needs more
stages rather than more bytes per stage.
"""

FULL = {
    "sm_80": Tiles(64, 64, 32, 4, 3, "tf32x3"),
    "sm_90": Tiles(64, 64, 32, 4, 3, "tf32x3"),
    "sm_100": Tiles(64, 64, 32, 4, 2, "tf32x3"),
    "gfx942": Tiles(64, 64, 16, 8, 2),
}
"""For fp32. NVIDIA's matrix units round fp32 operands to 11 digits; tf32x3 splits each operand in two and
adds three products, which leaves out 2^-22 of them. AMD's take fp32 as it is.
"""


def tiles_of(rows: Tensor) -> Tiles:
    """Returns the tiles for features like these, on their device."""
    return (FULL if rows.dtype == torch.float32 else HALF)[architecture(rows.device)]


def constants(tiles: Tiles) -> dict[str, int | str]:
    """Returns the kernels' compile-time arguments."""
    return {
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "PRECISION": tiles.precision,
    }


def options(tiles: Tiles) -> dict[str, int | str | bool]:
    """Returns these and the options of a launch."""
    return constants(tiles) | {
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
        "enable_fp_fusion": True,
    }
