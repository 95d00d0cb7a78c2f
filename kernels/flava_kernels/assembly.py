"""Reads a compiled kernel: NVIDIA's SASS as printed by nvdisasm, and AMD's amdgcn."""

from __future__ import annotations

import re
from collections.abc import Iterable

SPIN_LOOP = 16
"""Loops with fewer instructions only wait for a barrier."""

_LABEL = re.compile(r"^\s*(\.L\w+):")
_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S[^;]*?)\s*;")
_AMDGCN = re.compile(r"^\t([a-z][a-z0-9]*_[^\s;].*?)\s*(?:;.*)?$")
_BRANCH = re.compile(r"^(?:BRA|s_c?branch)\S*\s.*?(\.L\w+)")

MATRIX = re.compile(r"^(HGMMA|HMMA|UTC[A-Z]*MMA|v_s?mfmac?_)")
ATOMIC = re.compile(r"^(ATOM|ATOMG|RED|REDG)\b|^(global|buffer|flat)_atomic")
SPECIAL = re.compile(r"^MUFU\b|^v_(exp|log|rcp|rsq|sqrt|sin|cos)_f")
WIDE_LOAD = re.compile(r"^(LDG|LDGSTS)\S*\.128\b|^UTMALDG|^(global|buffer)_load_(lds_)?dwordx4")
LOAD = re.compile(r"^(LDG|LDGSTS|UTMALDG)\b|^(global|buffer)_load_")
MEMORY = re.compile(r"^(LDG|LDGSTS|STG)\b|^(global|buffer)_(load|store)_")
MULTIPLY_ADD = re.compile(r"^FFMA\b|^v_(fma|fmac|pk_fma)_f32")

_NVIDIA_WIDTH = re.compile(r"^\w+\S*\.(U8|S8|U16|S16|64|128)\b")
_NVIDIA_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_AMD_WIDTH = re.compile(
    r"^(?:global|buffer)_(?:load|store)_(?:lds_)?[us]?(byte|short|dwordx4|dwordx3|dwordx2|dword)"
)
_AMD_BYTES = {"byte": 1, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
_SPILL = re.compile(r"^(?:LDL|STL)(?:\.LU)?(?:\.(\d+))?")


def instructions(assembly: str) -> list[str]:
    """Lists the instructions in order, without predicates."""
    return [instruction for _, instruction in _numbered(assembly) if instruction]


def count(pattern: re.Pattern, found: Iterable[str]) -> int:
    """Counts the instructions that start with a pattern."""
    return sum(1 for instruction in found if pattern.match(instruction))


def inner_loop(assembly: str) -> list[str]:
    """Returns the body of the longest innermost loop with matrix instructions, or else of any.

    Without a loop, returns all instructions.
    """
    listed: list[str] = []
    labels: dict[str, int] = {}
    for label, instruction in _numbered(assembly):
        if label:
            labels[label] = len(listed)
        elif instruction:
            listed.append(instruction)
    spans = []
    for place, instruction in enumerate(listed):
        branch = _BRANCH.match(instruction)
        start = labels.get(branch.group(1), len(listed)) if branch else len(listed)
        if start <= place and place + 1 - start >= SPIN_LOOP:
            spans.append((start, place + 1))
    inner = [
        span
        for span in spans
        if not any(other != span and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]
    bodies = [listed[start:end] for start, end in inner] or [listed]
    return max(bodies, key=lambda body: (count(MATRIX, body) > 0, len(body)))


def spilled_bytes(assembly: str) -> int:
    """Returns the stack bytes that a thread stores and loads, as `ptxas -v` does; AMD: 4 per register."""
    amd = re.findall(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    if amd:
        return 4 * int(amd[-1])
    found = (_SPILL.match(instruction) for instruction in instructions(assembly))
    return sum(int(match.group(1) or 32) // 8 for match in found if match)


def matrix_flops(found: Iterable[str]) -> int | None:
    """Returns the floating-point operations of one warp's matrix instructions.

    None if the instructions do not name their shape (sm_100).
    """
    total = 0
    for instruction in found:
        if not MATRIX.match(instruction):
            continue
        shape = re.match(
            r"^HGMMA\.(\d+)x(\d+)x(\d+)|^HMMA\.(16)(8)(16|8)\b|^v_s?mfmac?_f32_(\d+)x(\d+)x(\d+)", instruction
        )
        if shape is None:
            return None
        m, n, k = (int(size) for size in shape.groups() if size is not None)
        # four warps share one HGMMA
        total += 2 * m * n * k // (4 if instruction.startswith("HGMMA") else 1)
    return total


def bytes_moved(found: Iterable[str]) -> int:
    """Returns the bytes that one thread reads from or writes to global memory."""
    total = 0
    for instruction in found:
        if not MEMORY.match(instruction):
            continue
        amd = _AMD_WIDTH.match(instruction)
        width = _NVIDIA_WIDTH.match(instruction)
        total += _AMD_BYTES[amd.group(1)] if amd else _NVIDIA_BYTES[width.group(1)] if width else 4
    return total


def _numbered(assembly: str) -> Iterable[tuple[str | None, str | None]]:
    """Yields (label, None) and (None, instruction)."""
    pattern = _AMDGCN if ".amdgcn_target" in assembly else _SASS
    for line in assembly.splitlines():
        if label := _LABEL.match(line):
            yield label.group(1), None
        elif instruction := pattern.match(line):
            yield None, instruction.group(1)
