"""Runs planted bugs: copies flava_kernels, edits a kernel's source, and runs cases of an operator on the copy
in Triton's interpreter.

`python mutation_run.py MODULE FOLDER NAME...` runs mutants of one module of triton_ops, with copies under
FOLDER, and prints one JSON object: for every mutant "caught" (a check failed), "crashed" (it read or wrote
where no memory is), "survived", or what else went wrong. One process imports torch and triton; every mutant
is a fork of it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import torch

os.environ |= {"TRITON_INTERPRET": "1", "FLAVA_KERNELS": "triton"}
import triton  # noqa: E402, F401  (the variable is read when a kernel is defined)

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "kernels")]
import interpreter_bf16  # noqa: E402
import mutants  # noqa: E402
from planted_bug import Mutant, unchanged  # noqa: E402

PACKAGE = TESTS.parent / "kernels" / "flava_kernels"
SURVIVED, CAUGHT, BROKEN = 0, 3, 4
BY_SIGNAL = {
    signal.SIGALRM: "ran for ever",
    signal.SIGSEGV: "crashed",
    signal.SIGBUS: "crashed",
    signal.SIGABRT: "crashed",
}
"""The C library aborts when it finds its heap overwritten. Other signals say nothing of the bug: the kernel
of the system kills for memory.
"""
SECONDS = 600
"""A mutant that loops for ever is not caught by any check: it is reported."""


def copy_with(module: str, mutant: Mutant, folder: Path) -> None:
    """Copies the package and edits one module of triton_ops. Raises LookupError where a text does not occur
    as often as the mutant says.
    """
    shutil.copytree(PACKAGE, folder / "flava_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "flava_kernels" / "triton_ops" / f"{module}.py"
    source = path.read_text(encoding="utf-8")
    for text, replacement, times in (
        *((*edit, mutant.times) for edit in mutant.edits),
        *((*edit, 1) for edit in mutant.setup),
    ):
        if source.count(text) != times:
            raise LookupError(
                f"{module}, {mutant.name}: {source.count(text)} times in the source instead of {times}: "
                f"{text}"
            )
        source = source.replace(text, replacement)
    path.write_text(source, encoding="utf-8")


def run_cases(mutant: Mutant, folder: Path) -> int:
    """Runs the mutant's cases on the copy; the exit status of the fork."""
    sys.path.insert(0, str(folder))
    import flava_kernels
    import kernel_checks
    import op_checks

    if not Path(flava_kernels.__file__).is_relative_to(folder):
        raise RuntimeError(f"the copy is not what is imported, but {flava_kernels.__file__}")
    op = flava_kernels.OPS[mutant.op]
    wanted = [case for case in op.cases() if case.name in mutant.cases]
    if len(wanted) != len(mutant.cases):
        raise LookupError(f"{mutant.op} lacks one of the cases {mutant.cases}")
    dtype = getattr(torch, mutant.dtype)
    try:
        for case in wanted:
            op_checks.check_case(op, case, dtype)
        for name in mutant.checks:
            getattr(kernel_checks, name)(dtype)
    except AssertionError as error:
        print(f"{mutant.name}: {error}", file=sys.stderr)
        return CAUGHT
    return SURVIVED


def outcome(mutant: Mutant, folder: Path) -> str:
    """Forks, runs, and says what happened."""
    process = os.fork()
    if process == 0:
        signal.alarm(SECONDS)
        try:
            status = run_cases(mutant, folder)
        except Exception:
            traceback.print_exc()
            status = BROKEN
        os._exit(status)
    _, ended = os.waitpid(process, 0)
    if os.WIFSIGNALED(ended):
        return BY_SIGNAL.get(
            os.WTERMSIG(ended), f"ended by {signal.Signals(os.WTERMSIG(ended)).name}: out of memory?"
        )
    return {SURVIVED: "survived", CAUGHT: "caught"}.get(
        os.WEXITSTATUS(ended), "raised something else than an assertion"
    )


def main(module: str, folder: str, *names: str) -> None:
    """Runs the unchanged module first: the mutants' cases have to pass."""
    interpreter_bf16.install()
    found, planted = {}, [mutant for mutant in mutants.MUTANTS[module] if mutant.name in names]
    for place, mutant in enumerate((*unchanged(planted), *planted)):
        copy = Path(folder) / f"{module}-{place}"
        copy_with(module, mutant, copy)
        found[mutant.name] = outcome(mutant, copy)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
