"""Reads Triton's intermediate language: the dots of a kernel, and the FLOPs of its innermost loop."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_DOT = re.compile(r"tt\.dot .*: tensor<(\d+)x(\d+)x(\w+)> \* tensor<(\d+)x(\d+)x\w+>")
_LOOP = re.compile(r"\bscf\.(for|while)\b")
_ELEMENTWISE = re.compile(r"math\.(?:exp2?|log2?) .*: (?:tensor<([\dx]+)x\w+>)?")


@dataclass(frozen=True)
class Dot:
    """One tt.dot: [m k] x [k n], its operand type, and its enclosing loops as line numbers."""

    m: int
    k: int
    n: int
    type: str
    loops: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        return 2 * self.m * self.k * self.n


def dots(ir: str) -> list[Dot]:
    """Lists the dots in order."""
    return [
        Dot(int(m), int(k), int(n), kind, loops)
        for line, loops in _lines(ir)
        for m, k, kind, _, n in _DOT.findall(line)
    ]


def exponentials(ir: str) -> int:
    """Counts one program's exponentials and logarithms in the innermost loop that has most of them.

    If no loop has any, counts those outside of loops.
    """
    totals: dict[tuple[int, ...], int] = {}
    for line, loops in _lines(ir):
        for shape in _ELEMENTWISE.findall(line):
            totals[loops] = totals.get(loops, 0) + (
                math.prod(int(size) for size in shape.split("x")) if shape else 1
            )
    return max(totals.items(), key=lambda item: (len(item[0]), item[1]))[1] if totals else 0


def loop_flops(found: list[Dot]) -> int:
    """Returns the operations of dots in the innermost loop with most of them; of all without a loop."""
    totals: dict[tuple[int, ...], int] = {}
    for dot in found:
        totals[dot.loops] = totals.get(dot.loops, 0) + dot.flops
    deepest = max(map(len, totals), default=0)
    return max((flops for loops, flops in totals.items() if len(loops) == deepest), default=0)


def _lines(ir: str) -> list[tuple[str, tuple[int, ...]]]:
    """Pairs every line with its enclosing loops; a region closes at the indentation where it opened."""
    found: list[tuple[str, tuple[int, ...]]] = []
    open_loops: list[tuple[int, int]] = []
    for number, line in enumerate(ir.splitlines()):
        indent = len(line) - len(line.lstrip())
        if (
            open_loops
            and open_loops[-1][0] == indent
            and line.lstrip().startswith("}")
            and not line.lstrip().startswith("} do")
        ):
            open_loops.pop()
        found.append((line, tuple(place for _, place in open_loops)))
        if _LOOP.search(line):
            open_loops.append((indent, number))
    return found
