"""Tile sizes of the attention kernels, from the compiler's reports per architecture; never autotuned.

Short sequences need small tiles: at 17 tokens, a tile of 128 x 128 does 2 % useful work. Backward, keys
beyond one tile cost a partial sum of dQ in memory, so tiles are as wide as registers allow. Tiles for which
the compiler spills registers are excluded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from flava_kernels.attention import HEAD_SIZES


class Tile(NamedTuple):
    """Queries and keys of a tile, and compile options."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


BUCKETS = (16, 32, 128)
"""Longest sequence of each bucket except the last."""

_FORWARD = {
    32: (Tile(16, 16, 1, 1), Tile(32, 32, 1, 1), Tile(64, 32, 4, 2), Tile(64, 64, 4, 2)),
    64: (Tile(16, 16, 1, 1), Tile(32, 32, 1, 1), Tile(64, 32, 4, 2), Tile(64, 64, 4, 2)),
    128: (Tile(16, 16, 1, 1), Tile(32, 32, 2, 1), Tile(64, 32, 4, 2), Tile(64, 64, 4, 2)),
}
FORWARD = {
    "sm_80": _FORWARD
    | {128: (Tile(16, 16, 1, 1), Tile(32, 32, 2, 1), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2))},
    "sm_90": _FORWARD,
    "sm_100": _FORWARD,
    "gfx942": _FORWARD,
}
"""Architecture -> head size -> a tile for each bucket, in half precision."""

_BACKWARD = {
    32: (Tile(16, 16, 1, 1), Tile(32, 32, 2, 1), Tile(64, 64, 4, 1), Tile(64, 64, 4, 1)),
    64: (Tile(16, 16, 1, 1), Tile(32, 32, 2, 1), Tile(64, 64, 4, 1), Tile(64, 64, 4, 1)),
    128: (Tile(16, 16, 2, 1), Tile(32, 32, 4, 1), Tile(32, 64, 8, 1), Tile(32, 64, 8, 1)),
}
BACKWARD = {
    "sm_80": _BACKWARD
    | {64: (Tile(16, 16, 1, 1), Tile(32, 32, 2, 1), Tile(32, 64, 4, 1), Tile(32, 64, 4, 1))},
    "sm_90": _BACKWARD,
    "sm_100": _BACKWARD,
    "gfx942": _BACKWARD
    | {128: (Tile(16, 16, 2, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1))},
}

FORWARD_FP32 = {
    32: (Tile(16, 16, 4, 2),) * 4,
    64: (Tile(16, 16, 4, 2),) * 4,
    128: (Tile(16, 16, 8, 2),) * 4,
}
"""For every architecture. Exact fp32 products use no matrix units; small tiles avoid register spills."""
BACKWARD_FP32 = {
    32: (Tile(16, 16, 4, 1),) + (Tile(16, 32, 4, 1),) * 3,
    64: (Tile(16, 16, 4, 1),) + (Tile(16, 32, 4, 1),) * 3,
    128: (Tile(16, 16, 4, 1),) * 4,
}

EXAMPLE_LENGTH = 512
"""Sequence length for the static estimate of the last bucket."""

CROSS_QUERIES = 32
"""Most queries of cross-attention's first bucket, captions; there is one other. Keys are taken as many."""

_CROSS_FORWARD = dict.fromkeys(HEAD_SIZES, (Tile(32, 64, 4, 2), Tile(64, 64, 4, 2)))
CROSS_FORWARD = {
    "sm_80": _CROSS_FORWARD | {128: (Tile(32, 32, 4, 2),) * 2},
    "sm_90": _CROSS_FORWARD,
    "sm_100": _CROSS_FORWARD,
    "gfx942": _CROSS_FORWARD,
}
"""Architecture -> head size -> a tile for each bucket of queries, in half precision."""
_CROSS_BACKWARD = {
    32: (Tile(32, 64, 4, 1), Tile(64, 64, 4, 1)),
    64: (Tile(32, 64, 4, 1), Tile(64, 64, 4, 1)),
    128: (Tile(32, 64, 8, 1),) * 2,
}
CROSS_BACKWARD = {
    "sm_80": _CROSS_BACKWARD | {64: (Tile(32, 64, 4, 1),) * 2},
    "sm_90": _CROSS_BACKWARD,
    "sm_100": _CROSS_BACKWARD | {32: (Tile(32, 64, 4, 1),) * 2, 128: (Tile(32, 32, 4, 1),) * 2},
    "gfx942": _CROSS_BACKWARD | {128: (Tile(32, 32, 4, 1),) * 2},
}


def bucket(max_seqlen: int) -> int:
    """Returns a length's index in the tables' rows."""
    return sum(max_seqlen > longest for longest in BUCKETS)


def longest_of_bucket(max_seqlen: int) -> float:
    """Returns the longest sequence of a length's bucket; one kernel serves the whole bucket."""
    return (*BUCKETS, float("inf"))[bucket(max_seqlen)]


def tile_of(*, backward: bool, dtype: torch.dtype, arch: str, head_size: int, max_seqlen: int) -> Tile:
    """Returns the tile for a launch."""
    if dtype == torch.float32:
        rows = BACKWARD_FP32 if backward else FORWARD_FP32
    else:
        rows = (BACKWARD if backward else FORWARD)[arch]
    return rows[head_size][bucket(max_seqlen)]


def cross_tile_of(*, backward: bool, dtype: torch.dtype, arch: str, head_size: int, max_queries: int) -> Tile:
    """Returns the tile for a launch of cross-attention; in fp32 that of the longest self-attention."""
    if dtype == torch.float32:
        return (BACKWARD_FP32 if backward else FORWARD_FP32)[head_size][-1]
    few, many = (CROSS_BACKWARD if backward else CROSS_FORWARD)[arch][head_size]
    return few if max_queries <= CROSS_QUERIES else many


def from_memory(tile: Tile, longest: int, element: int, backward_pass: bool, causal: bool) -> float:
    """Returns `Launch.from_memory` of a loop over tiles.

    4 rows per token (backward: 8) move once, spread over all passes; sums of dQ stay in the L2 cache.
    Forward, a pass loads a tile's keys and values; backward, three rows per query and two of sums, and it
    writes one more. Causal attention makes about half as many passes: the tiles up to the diagonal.
    """
    length = longest if longest in BUCKETS else EXAMPLE_LENGTH
    step = tile.keys if backward_pass else tile.queries
    once = 8 * element * step / ((4 * element + 8) * length) if backward_pass else 2 * step / length
    visited = (1 + step / length) / 2 if causal else 1.0
    return min(1.0, once / visited)


def options(tile: Tile) -> dict[str, int | bool]:
    """Returns a tile's compile options."""
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": True}
