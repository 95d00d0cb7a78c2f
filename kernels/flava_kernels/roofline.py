"""Estimates, from a compiled kernel alone, what bounds its inner loop and how many blocks are resident.

For one block and one pass through the loop, cycles of the multiprocessor, whose four quarters the resident
blocks share:

    issue     warp instructions                      x cycles to issue one
    special   exponentials, reciprocals, roots       x cycles on the special function units
    matrix    floating-point operations of the dots  / operations per cycle
    cache     bytes requested from global memory     / bytes per cycle between a multiprocessor and the L2
    memory    those that come from the GPU's memory  / bytes per cycle; each byte of the operator once
                                                     (`Launch.from_memory`)

The largest bounds the loop. `share` is max(matrix, memory) / largest: the share of the hardware's roof that
is reached if all five overlap perfectly. Latency, bank conflicts, misses and the tail of a grid are not
modelled; expect an error of 30 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flava_kernels import assembly


@dataclass(frozen=True)
class Machine:
    """A GPU, with its vendor's numbers per multiprocessor (NVIDIA) or compute unit (AMD).

    `matrix_rate` is dense 16-bit operations per cycle, `vector_rate` fp32 ones; `issue` and `special` are
    cycles per warp instruction in one quarter. `register_file` counts registers, `register_step` is the
    allocation unit of a warp or wave; `shared` and `shared_block` are bytes.
    """

    name: str
    units: int
    gigahertz: float
    terabytes_per_second: float
    matrix_rate: int
    issue: int
    special: int
    most_warps: int
    most_blocks: int
    register_file: int
    register_step: int
    shared: int
    shared_block: int
    shared_reserved: int
    warp_size: int = 32
    vector_rate: int = 256
    cache_rate: int = 64
    """Bytes per cycle.

    An assumption: the width of one unit's port. Under full load an L2 gives less, e.g. 47 on an A100 (5,120
    over 108).
    """

    @property
    def bytes_per_cycle(self) -> float:
        """One unit's share of the memory bandwidth."""
        return self.terabytes_per_second * 1e3 / self.units / self.gigahertz


MACHINES = {
    "sm_80": Machine(
        "A100 80 GB", 108, 1.41, 2.04, 2048, 1, 8, 64, 32, 65536, 256, 167936, 166912, 1024, vector_rate=128
    ),
    "sm_90": Machine("H100 SXM", 132, 1.755, 3.35, 4096, 1, 8, 64, 32, 65536, 256, 233472, 232448, 1024),
    "sm_100": Machine("B200", 148, 1.85, 8.0, 8192, 1, 8, 64, 32, 65536, 256, 233472, 232448, 1024),
    "gfx942": Machine(
        "MI300X", 304, 2.1, 5.3, 2048, 4, 16, 32, 32, 131072, 512, 65536, 65536, 0, warp_size=64
    ),
}


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks per multiprocessor, and their limit: registers, shared memory, warps or blocks."""

    blocks: int
    limited_by: str


@dataclass(frozen=True)
class Estimate:
    """Cycles of one block's pass through the inner loop, and the share of the roof that it reaches."""

    issue: float
    special: float
    matrix: float
    cache: float
    memory: float

    @property
    def bound(self) -> str:
        """Name of the largest of the five."""
        return max(vars(self), key=lambda name: getattr(self, name))

    @property
    def share(self) -> float:
        """Share of the nearer roof, of matrix units or memory, that the loop can reach."""
        return max(self.matrix, self.memory) / max(vars(self).values())


def occupancy(machine: Machine, registers: int, shared: int, num_warps: int) -> Occupancy:
    """Counts resident blocks by every limit; a block that exceeds its shared-memory limit does not fit."""
    per_warp = (
        math.ceil(max(registers, 1) * machine.warp_size / machine.register_step) * machine.register_step
    )
    limits = {
        "registers": machine.register_file // (per_warp * num_warps),
        "shared memory": 0
        if shared > machine.shared_block
        else machine.shared // max(1, math.ceil(shared / 128) * 128 + machine.shared_reserved),
        "warps": machine.most_warps // num_warps,
        "blocks": machine.most_blocks,
    }
    limited_by = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limited_by], limited_by)


def estimate(
    machine: Machine, loop: list[str], num_warps: int, loop_dot_flops: int, from_memory: float
) -> Estimate:
    """Estimates one pass through a loop.

    `loop_dot_flops`, the operations of a block's dots in it, are used if instructions do not name their
    shape.
    """
    asked = assembly.bytes_moved(loop) * machine.warp_size * num_warps
    warps_per_quarter = num_warps / 4
    per_warp = assembly.matrix_flops(loop)
    matrix = (loop_dot_flops if per_warp is None else per_warp * num_warps) / machine.matrix_rate
    if matrix == 0 and loop_dot_flops:
        matrix = loop_dot_flops / machine.vector_rate
    return Estimate(
        issue=len(loop) * warps_per_quarter * machine.issue,
        special=assembly.count(assembly.SPECIAL, loop) * warps_per_quarter * machine.special,
        matrix=matrix,
        cache=asked / machine.cache_rate,
        memory=asked * from_memory / machine.bytes_per_cycle,
    )
