"""python -m flava_kernels.aot: compiles every shipped configuration for GPUs that need not be there and says what the binaries cost.

`--check` compares with the committed budget (kernels/aot_budget.json) and exits with status 1 on a regression, `--update` rewrites the rows of the
Triton version in use, `--csv` and `--markdown` write the whole table, the static estimate of roofline.py included.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from flava_kernels import OPS, aot_budget, assembly, roofline, triton_ir

if TYPE_CHECKING:
    from flava_kernels.triton_ops.launch import Launch

MATRIX_TYPES = ("bf16", "f16")
"""Operands of dots that must run on the matrix units; dots of fp32 in full precision have none."""

MOST_TENSOR_MEMORY = 512


@dataclass(frozen=True)
class Row:
    """One configuration, compiled. `loop_*` and the cycles are those of one pass of one block through the inner loop."""

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
    """What makes the binary useless whatever the budget says, or nothing."""


def launches(operators: Iterable[str] = (), architectures: Iterable[str] = ()) -> list[tuple[str, Launch]]:
    """Lists (module, Launch) of the operators and architectures named; of all where none is. Raises ValueError for a name that occurs twice."""
    modules = dict.fromkeys(op.kernels for name, op in OPS.items() if not operators or name in operators)
    found = [(module, launch) for module in modules for launch in importlib.import_module(module).launches()]
    names = [(launch.arch, launch.name) for _, launch in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"launches of the same name: {repeated}")
    return [(module, launch) for module, launch in found if not architectures or launch.arch in architectures]


def compile_row(module: str, arch: str, name: str) -> Row:
    """Compiles one configuration and reads its binary."""
    compiling = importlib.import_module("flava_kernels.triton_ops.compiling")
    launch = next(launch for launch in importlib.import_module(module).launches() if (launch.arch, launch.name) == (arch, name))
    compiled = compiling.compile_launch(launch)
    machine = roofline.MACHINES[arch]
    code, loop, dots = assembly.instructions(compiled.assembly), assembly.inner_loop(compiled.assembly), triton_ir.dots(compiled.ir)
    resident = roofline.occupancy(machine, compiled.registers, compiled.shared, launch.num_warps)
    estimate = roofline.estimate(machine, loop, launch.num_warps, triton_ir.loop_flops(dots), launch.from_memory)
    matrix = assembly.count(assembly.MATRIX, code)
    atomics = assembly.count(assembly.ATOMIC, code)
    return Row(
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
        faults="; ".join(_faults(compiled.tensor_memory, resident.blocks, atomics, matrix, [dot.type for dot in dots])),
    )


def _faults(tensor_memory: int, blocks: int, atomics: int, matrix: int, dot_types: list[str]) -> Iterable[str]:
    if tensor_memory > MOST_TENSOR_MEMORY:
        yield f"{tensor_memory} columns of tensor memory, but {MOST_TENSOR_MEMORY} exist: the compiler replaces the kernel by a trap without a word"
    if blocks == 0:
        yield "no block fits a multiprocessor"
    if atomics:
        yield f"{atomics} atomic operations: results depend on the order of blocks"
    if not matrix and any(kind in MATRIX_TYPES for kind in dot_types):
        yield "dots of 16-bit operands without a matrix instruction"


def compile_rows(wanted: Sequence[tuple[str, Launch]], processes: int) -> tuple[list[Row], list[str]]:
    """Compiles in several processes; returns rows in the order of `wanted`, and what the compiler said where it refused."""
    rows, refused = [], []
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [(launch, pool.submit(compile_row, module, launch.arch, launch.name)) for module, launch in wanted]
        for launch, future in running:
            try:
                rows.append(future.result())
            except Exception as error:  # the compiler's passes raise anything
                refused.append(f"{launch.arch} {launch.name} does not compile: {type(error).__name__}: {error}")
    return rows, refused


HEADER = {
    "triton": lambda row: row.triton,
    "GPU": lambda row: row.arch,
    "kernel": lambda row: row.name,
    "warps": lambda row: row.num_warps,
    "registers": lambda row: row.registers,
    "spills, B": lambda row: row.spilled_bytes,
    "shared, KiB": lambda row: f"{row.shared / 1024:.1f}",
    "tensor memory": lambda row: row.tensor_memory,
    "matrix instructions / dots": lambda row: f"{row.matrix_instructions}/{row.dots}" if row.dots else "-",
    "16-byte loads / loads": lambda row: f"{row.wide_loads}/{row.loads}",
    "blocks, limit": lambda row: f"{row.blocks}, {row.limited_by}",
    "loop instructions": lambda row: row.loop_instructions,
    "cycles: issue / special / matrix / cache / memory": lambda row: " / ".join(
        str(cycles) for cycles in (row.issue_cycles, row.special_cycles, row.matrix_cycles, row.cache_cycles, row.memory_cycles)
    ),
    "bound by": lambda row: row.bound,
    "share of the roof": lambda row: f"{row.share:.2f}",
}


def markdown(rows: Iterable[Row]) -> str:
    """Writes the table; the last four columns are the static estimate."""
    lines = [list(HEADER), ["---"] * len(HEADER), *([str(cell(row)) for cell in HEADER.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes all fields; rows of other Triton versions that the file has stay, those of the versions in `rows` are replaced."""
    names = [field.name for field in fields(Row)]
    versions = {row.triton for row in rows}
    kept = [line for line in read_csv(path) if line["triton"] not in versions] if path.exists() else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *map(asdict, rows)], key=lambda line: line["triton"]))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Reads what `write_csv` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flava_kernels.aot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="*", default=[], choices=list(OPS), help="these operators only")
    parser.add_argument("--arch", nargs="*", default=[], choices=list(roofline.MACHINES), help="these architectures only")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--budget", type=Path, default=aot_budget.PATH)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare with the budget")
    action.add_argument("--update", action="store_true", help="rewrite the budget's rows of the Triton version in use")
    parser.add_argument("--csv", type=Path, help="replaces the rows of the Triton version in use in this file")
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 when a binary is useless or misses its budget."""
    options = _arguments(arguments)
    wanted = launches(options.op, options.arch)
    if not wanted:
        sys.exit("error: no kernels match")
    rows, problems = compile_rows(wanted, options.processes)
    print(markdown(rows))
    print("The cycles are a static estimate from the compiled code, for one pass of one block through its inner loop (roofline.py); nothing was run.")
    if options.csv:
        write_csv(options.csv, rows)
    if options.markdown:
        options.markdown.write_text(markdown(rows), encoding="utf-8")
    problems += [f"{row.arch} {row.name}: {row.faults}" for row in rows if row.faults]
    partial = bool(options.op or options.arch)
    if options.update:
        aot_budget.update(options.budget, [asdict(row) for row in rows], partial)
    if options.check:
        problems += aot_budget.regressions(options.budget, [asdict(row) for row in rows], partial)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
