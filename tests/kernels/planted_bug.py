"""What a planted bug is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

Edits = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Mutant:
    """`edits` are (text, replacement), each text occurring `times` in the module; `setup` are edits that
    change no result, for the unchanged run too.

    `cases` are the operator's, `checks` functions of kernel_checks.py.
    """

    name: str
    edits: Edits
    op: str
    cases: tuple[str, ...]
    dtype: str = "float32"
    times: int = 1
    setup: Edits = ()
    checks: tuple[str, ...] = ()


def bug(name: str, text: str, replacement: str, op: str, *cases: str, **options) -> Mutant:
    """A mutant with one edit."""
    return Mutant(name, ((text, replacement),), op, cases, **options)


def unchanged(planted: Iterable[Mutant]) -> list[Mutant]:
    """The cases of mutants without their bugs."""
    merged: dict[tuple, Mutant] = {}
    for mutant in planted:
        key = (mutant.op, mutant.dtype, mutant.setup)
        sofar = merged.get(key, replace(mutant, cases=(), checks=()))
        cases, checks = (
            tuple(dict.fromkeys((*old, *new)))
            for old, new in ((sofar.cases, mutant.cases), (sofar.checks, mutant.checks))
        )
        name = f"unchanged: {mutant.op}, {mutant.dtype}{', set up' if mutant.setup else ''}"
        merged[key] = replace(mutant, name=name, edits=(), cases=cases, checks=checks, times=1)
    return list(merged.values())
