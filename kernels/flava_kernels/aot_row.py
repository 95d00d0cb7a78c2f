"""A compiled configuration: how it is compiled and counted, and what the binary costs."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

from flava_kernels import aot_hash, assembly, roofline, triton_ir

if TYPE_CHECKING:
    from flava_kernels.triton_ops.launch import Launch

MATRIX_TYPES = ("bf16", "f16")
"""Operands of dots that must run on the matrix units; fp32 dots in full precision do not."""

MOST_TENSOR_MEMORY = 512


@dataclass(frozen=True)
class Row:
    """A compiled configuration. `loop_*` and cycles are for one pass of a block through the inner loop."""

    triton: str
    arch: str
    name: str
    num_warps: int
    num_stages: int
    registers: int
    spilled_bytes: int
    shared: int
    tensor_memory: int
    dots: int
    matrix_instructions: int
    wide_loads: int
    loads: int
    atomics: int
    blocks: int
    limited_by: str
    loop_instructions: int
    loop_flops: int
    loop_bytes: int
    loop_exponentials: int
    issue_cycles: int
    special_cycles: int
    matrix_cycles: int
    cache_cycles: int
    memory_cycles: int
    bound: str
    share: float
    faults: str
    """Reasons why the binary is unusable regardless of its budget; empty if none."""
    hash: str = ""
    """Of the configuration and of this row's numbers (aot_hash.py)."""


def read_row(line: Mapping[str, str]) -> Row:
    """Parses a line of kernels/aot.csv. Raises ValueError if a numeric cell is not a number."""
    kinds = {"int": int, "float": float}
    return Row(
        **{field.name: kinds.get(str(field.type), str)(line.get(field.name) or "") for field in fields(Row)}
    )


def with_hash(row: Row, launch_hash: str) -> Row:
    """Returns the row with the hash that ties its numbers to a configuration."""
    return replace(row, hash=aot_hash.of_row(launch_hash, asdict(row)))


def edited(row: Row) -> bool:
    """Returns True if a row's numbers are not those that its hash was made from."""
    return row != with_hash(row, row.hash.partition("-")[0])


def is_of(row: Row, launch_hash: str) -> bool:
    """Returns True if a row was compiled from this configuration and not edited since."""
    return row == with_hash(row, launch_hash)


def compile_row(module: str, arch: str, name: str) -> Row:
    """Compiles a configuration, given its module and name, and reads its binary."""
    compiling = importlib.import_module("flava_kernels.triton_ops.compiling")
    launches: Iterable[Launch] = importlib.import_module(module).launches()
    launch = next(launch for launch in launches if (launch.arch, launch.name) == (arch, name))
    compiled = compiling.compile_launch(launch)
    machine = roofline.MACHINES[arch]
    code, loop, dots = (
        assembly.instructions(compiled.assembly),
        assembly.inner_loop(compiled.assembly),
        triton_ir.dots(compiled.ir),
    )
    resident = roofline.occupancy(machine, compiled.registers, compiled.shared, launch.num_warps)
    estimate = roofline.estimate(
        machine, loop, launch.num_warps, triton_ir.loop_flops(dots), launch.from_memory
    )
    matrix = assembly.count(assembly.MATRIX, code)
    atomics = assembly.count(assembly.ATOMIC, code)
    row = Row(
        triton=compiling.VERSION,
        arch=arch,
        name=name,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        registers=compiled.registers,
        spilled_bytes=assembly.spilled_bytes(compiled.assembly),
        shared=compiled.shared,
        tensor_memory=compiled.tensor_memory,
        dots=len(dots),
        matrix_instructions=matrix,
        wide_loads=assembly.count(assembly.WIDE_LOAD, code),
        loads=assembly.count(assembly.LOAD, code),
        atomics=atomics,
        blocks=resident.blocks,
        limited_by=resident.limited_by,
        loop_instructions=len(loop),
        loop_flops=triton_ir.loop_flops(dots),
        loop_bytes=assembly.bytes_moved(loop) * machine.warp_size * launch.num_warps,
        loop_exponentials=triton_ir.exponentials(compiled.ir),
        **{f"{resource}_cycles": round(cycles) for resource, cycles in asdict(estimate).items()},
        bound=estimate.bound,
        share=round(estimate.share, 2),
        faults="; ".join(
            faults(compiled.tensor_memory, resident.blocks, atomics, matrix, [dot.type for dot in dots])
        ),
    )
    return with_hash(row, aot_hash.of_launch(launch, compiling.FULL_VERSION))


def faults(tensor_memory: int, blocks: int, atomics: int, matrix: int, dot_types: list[str]) -> Iterable[str]:
    """Yields the reasons why a binary is unusable regardless of its cost."""
    if tensor_memory > MOST_TENSOR_MEMORY:
        yield (
            f"{tensor_memory} columns of tensor memory, but {MOST_TENSOR_MEMORY} exist: the compiler "
            "replaces the kernel by a trap without a word"
        )
    if blocks == 0:
        yield "no block fits a multiprocessor"
    if atomics:
        yield f"{atomics} atomic operations: results depend on the order of blocks"
    if not matrix and any(kind in MATRIX_TYPES for kind in dot_types):
        yield "dots of 16-bit operands without a matrix instruction"
