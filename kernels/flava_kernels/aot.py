"""python -m flava_kernels.aot: compiles the configurations ahead of time and reports their cost.

The GPUs need not be present. A configuration is not compiled again if its row in kernels/aot.csv carries the
hash of its inputs (aot_hash.py), unless `--full` is given. `--stale` only lists the others. `--csv` writes
the table and `--update` the budget (kernels/aot_budget.json), both for the installed Triton version.
`--check` compares with both and exits with status 1 on a regression. It also compiles one configuration of
every kernel that the table already has, drawn by the text after `--sample`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flava_kernels import OPS, aot_budget, aot_hash, aot_table, roofline
from flava_kernels.aot_row import Row, compile_row, edited, is_of
from flava_kernels.aot_table import Key

if TYPE_CHECKING:
    from flava_kernels.triton_ops.launch import Launch


def launches(operators: Iterable[str] = (), architectures: Iterable[str] = ()) -> list[tuple[str, Launch]]:
    """Lists (module, Launch) for the given operators and architectures; all if none are given.

    Raises ValueError for a name that occurs twice.
    """
    modules = dict.fromkeys(op.kernels for name, op in OPS.items() if not operators or name in operators)
    found = [(module, launch) for module in modules for launch in importlib.import_module(module).launches()]
    names = [(launch.arch, launch.name) for _, launch in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"several launches have the same name: {repeated}")
    return [(module, launch) for module, launch in found if not architectures or launch.arch in architectures]


def compile_rows(wanted: Sequence[tuple[str, Launch]], processes: int) -> tuple[list[Row], list[str]]:
    """Compiles in several processes. Returns rows in the order of `wanted`, and compiler errors."""
    rows, refused = [], []
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [
            (launch, pool.submit(compile_row, module, launch.arch, launch.name)) for module, launch in wanted
        ]
        for launch, future in running:
            try:
                rows.append(future.result())
            except Exception as error:  # compiler passes may raise anything
                refused.append(
                    f"{launch.arch} {launch.name} does not compile: {type(error).__name__}: {error}"
                )
    return rows, refused


@dataclass(frozen=True)
class Work:
    """The work of one run: `kept` rows are valid, `left` have none, `again` are compiled nevertheless."""

    table: Mapping[Key, Row]
    kept: Mapping[Key, Row]
    left: Sequence[tuple[str, Launch]]
    again: Sequence[tuple[str, Launch]]

    def problems(self, compiled: Iterable[Row]) -> Iterable[str]:
        """Yields problems of the table: edited rows, and rows that the compiler does not confirm."""
        for launch in (launch for _, launch in self.left):
            row = self.table.get((launch.arch, launch.name))
            if row and row.hash and edited(row):
                yield (
                    f"{row.arch} {row.name} was edited in the table of triton {row.triton}: run make kernels"
                )
        for row in compiled:
            claimed = self.kept.get((row.arch, row.name), row)
            wrong = [
                f"{name} {getattr(claimed, name)}, now {value}"
                for name, value in asdict(row).items()
                if getattr(claimed, name) != value
            ]
            if wrong:
                yield (
                    f"{row.arch} {row.name} does not compile to what the table of triton "
                    f"{row.triton} says: {', '.join(wrong)}"
                )


def work(
    wanted: Sequence[tuple[str, Launch]], table: Mapping[Key, Row], full: bool, sample: str | None
) -> Work:
    """Finds the configurations without a valid row, and picks valid ones to compile again.

    All of them if `full`, else one per kernel, drawn by `sample`.
    """
    version = importlib.import_module("flava_kernels.triton_ops.compiling").FULL_VERSION
    kept, left = {}, []
    drawn: dict[tuple[str, str], list[tuple[str, str, Launch]]] = {}
    for module, launch in wanted:
        key = launch.arch, launch.name
        if key not in table or not is_of(table[key], aot_hash.of_launch(launch, version)):
            left.append((module, launch))
            continue
        kept[key] = table[key]
        ticket = hashlib.sha256(" ".join((sample or "", *key)).encode()).hexdigest()
        drawn.setdefault((module, launch.kernel.fn.__name__), []).append((ticket, module, launch))
    again = []
    if full or sample is not None:
        again = [
            ticket[1:]
            for tickets in drawn.values()
            for ticket in sorted(tickets, key=lambda ticket: ticket[0])[: None if full else 1]
        ]
    return Work(table, kept, left, again)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flava_kernels.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", nargs="*", default=[], choices=list(OPS), help="only these operators")
    parser.add_argument(
        "--arch", nargs="*", default=[], choices=list(roofline.MACHINES), help="only these architectures"
    )
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--budget", type=Path, default=aot_budget.PATH)
    parser.add_argument("--full", action="store_true", help="compile all, regardless of the table")
    parser.add_argument("--sample", default="", help="seed that draws what --check compiles again")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare with the budget and the table")
    action.add_argument(
        "--update", action="store_true", help="rewrite the budget's rows of the installed Triton version"
    )
    action.add_argument("--stale", action="store_true", help="list what would be compiled; compile nothing")
    parser.add_argument(
        "--csv",
        type=Path,
        help="table whose rows of the installed Triton version are replaced; valid ones are reused",
    )
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if a binary is unusable or misses its budget."""
    options = _arguments(arguments)
    wanted, partial = launches(options.op, options.arch), bool(options.op or options.arch)
    if not wanted:
        sys.exit("error: no kernels match")
    clone = aot_budget.PATH.is_file() or aot_table.PATH.is_file()
    if (options.check or options.update) and options.budget == aot_budget.PATH and not clone:
        sys.exit(
            f"error: {aot_budget.PATH}: no such file; a clone of the repository has it: run this there, or "
            "name one of your own with --budget"
        )
    version = importlib.import_module("flava_kernels.triton_ops.compiling").VERSION
    todo = work(
        wanted,
        aot_table.rows_of(options.csv or aot_table.PATH, version),
        options.full,
        options.sample if options.check else None,
    )
    if options.stale:
        print("\n".join(f"{launch.arch} {launch.name}" for _, launch in todo.left))
        return 0
    compiled, problems = compile_rows([*todo.left, *todo.again], options.processes)
    rows = list({**todo.kept, **{(row.arch, row.name): row for row in compiled}}.values())
    _tell(version, todo, compiled)
    if options.csv:
        order = [(launch.arch, launch.name) for _, launch in launches()]
        aot_table.write_csv(options.csv, version, rows, order, partial)
    if options.markdown:
        options.markdown.write_text(aot_table.markdown(rows), encoding="utf-8")
    problems += [f"{row.arch} {row.name}: {row.faults}" for row in rows if row.faults]
    if options.update:
        aot_budget.update(options.budget, [asdict(row) for row in rows], partial)
    if options.check:
        problems += [
            *todo.problems(compiled),
            *aot_budget.regressions(options.budget, [asdict(row) for row in rows], partial),
        ]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _tell(version: str, todo: Work, compiled: Sequence[Row]) -> None:
    if compiled:
        print(aot_table.markdown(compiled))
        print(
            "The cycles are a static estimate from the compiled code, for one pass of one block through "
            "its inner loop (roofline.py); nothing was run."
        )
    print(
        f"triton {version}: {len(todo.kept)} configurations have a valid row, of which "
        f"{len(todo.again)} were compiled again; {len(todo.left)} had none"
    )


if __name__ == "__main__":
    sys.exit(main())
