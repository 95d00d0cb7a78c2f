"""cases.csv: operators whose kernels passed all their cases in Triton's interpreter, each with a hash of
everything that this hung on. Of those, the tests run each case in one of its dtypes, which the commit draws.

`python case_record.py [OPERATOR...]` runs the cases of all operators, or of those named, that have no row
that holds, and writes their rows; it ends with status 1 where a case fails.
"""

from __future__ import annotations

import csv
import importlib.metadata
import os
import sys
import traceback
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS)]
import import_graph  # noqa: E402
import rotation  # noqa: E402
from flava_kernels import OPS, aot_hash  # noqa: E402
from flava_kernels.op import Case, Op  # noqa: E402

PATH = Path(__file__).with_name("cases.csv")
PACKAGE = TESTS.parent / "kernels"
FIELDS = ("triton", "operator", "hash")


def files_of(op: Op, *others: str) -> list[Path]:
    """Lists what decides whether an operator's cases pass: kernels, operator, cases, checks, and what they
    import; with `others`, modules of the package and files below tests.
    """
    modules = (op.kernels, op.function.__module__, *(name for name in others if not name.endswith(".py")))
    tests = ("op_checks.py", "interpreter_bf16.py", *(name for name in others if name.endswith(".py")))
    roots = [PACKAGE.joinpath(*name.split(".")).with_suffix(".py") for name in modules]
    return import_graph.all_imported_by([*roots, *(TESTS / name for name in tests)])


def hash_of(op: Op) -> str:
    """Returns the hash of what decides whether an operator's cases pass: the code, and Triton's version."""
    return aot_hash.digest(importlib.metadata.version("triton"), aot_hash.of_files(files_of(op)), op.name)


def read(path: Path = PATH) -> dict[str, str]:
    """Reads the hashes by operator; an absent file has none."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {line["operator"]: line["hash"] for line in csv.DictReader(file)}


def to_run(op: Op, case: Case, record: dict[str, str], seed: str) -> list[torch.dtype]:
    """Returns the dtypes of a case that the kernels take: of an operator whose row holds, the one that the
    seed draws.
    """
    taken = {str(dtype): dtype for dtype in case.dtypes if not op.supports(**case.inputs(dtype))}
    if taken and record.get(op.name) == hash_of(op):
        return [taken[rotation.draw(taken, f"{seed} {op.name} {case.name}")]]
    return list(taken.values())


def write(record: dict[str, str]) -> None:
    """Writes the rows in the order of OPS."""
    with PATH.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        version = importlib.metadata.version("triton")
        writer.writerows((version, name, record[name]) for name in OPS if name in record)


def main(*operators: str) -> int:
    """Brings cases.csv up to date, an operator at a time."""
    os.environ |= {"TRITON_INTERPRET": "1", "FLAVA_KERNELS": "triton"}  # read when a kernel is defined
    import interpreter_bf16
    import op_checks

    interpreter_bf16.install()
    record, status = read(), 0
    for name in operators or OPS:
        op, failed = OPS[name], False
        cases = op.cases() if record.get(name) != hash_of(op) else []
        print(f"{name}: {len(cases)} of {len(op.cases())} cases run", flush=True)
        for case in cases:
            for dtype in to_run(op, case, {}, ""):
                try:
                    op_checks.check_case(op, case, dtype)
                except Exception:
                    failed = True
                    print(f"error: {name}, {case.name}, {dtype}", file=sys.stderr)
                    traceback.print_exc()
        record.pop(name, "")
        if not failed:
            record[name] = hash_of(op)
        write(record)
        status |= failed
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
