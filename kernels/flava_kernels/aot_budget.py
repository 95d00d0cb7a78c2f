"""Cost limits of every compiled configuration: kernels/aot_budget.json, by Triton version and GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "aot_budget.json"

AT_MOST = ("registers", "spilled_bytes", "shared", "tensor_memory", "loads", "loop_instructions")
AT_LEAST = ("wide_loads", "blocks")
EXACTLY = ("dots", "matrix_instructions")
"""A tile without its dots, or with dots that moved off the matrix units, is a different kernel."""

Table = dict[str, dict[str, dict[str, dict[str, int]]]]


def load(path: Path) -> Table:
    """Reads a budget; a missing file is an empty one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def update(path: Path, rows: Iterable[Mapping[str, Any]], partial: bool) -> None:
    """Replaces the rows of `rows`' Triton versions; if `partial`, only the rows themselves."""
    table = load(path)
    rows = list(rows)
    if not partial:
        for version in {row["triton"] for row in rows}:
            table[version] = {}
    for row in rows:
        limits = {name: row[name] for name in (*AT_MOST, *AT_LEAST, *EXACTLY)}
        table.setdefault(row["triton"], {}).setdefault(row["arch"], {})[row["name"]] = limits
    path.write_text(_one_row_a_line(table), encoding="utf-8")


def regressions(path: Path, rows: Iterable[Mapping[str, Any]], partial: bool) -> list[str]:
    """Lists what exceeds the budget, is missing from it, or is left over in it."""
    table, found, seen = load(path), [], set()
    for row in rows:
        version, arch, name = row["triton"], row["arch"], row["name"]
        seen.add((version, arch, name))
        limits = table.get(version, {}).get(arch, {}).get(name)
        if limits is None:
            found.append(
                f"{arch} {name} has no budget for triton {version}: run python -m flava_kernels.aot --update"
            )
            continue
        worse = [
            f"{field} is {row[field]}, allowed {limits[field]}"
            for field in limits
            if _worse(field, row[field], limits[field])
        ]
        if worse:
            found.append(f"triton {version}, {arch} {name}: {', '.join(worse)}; the row: {_cells(row)}")
    if not partial:
        versions = {version for version, _, _ in seen}
        budgeted = {
            (version, arch, name)
            for version in versions
            for arch, names in table.get(version, {}).items()
            for name in names
        }
        found += [
            f"{arch} {name} is in the budget for triton {version}, but no kernel has that name"
            for version, arch, name in sorted(budgeted - seen)
        ]
    return found


def _worse(field: str, value: int, limit: int) -> bool:
    if field in AT_MOST:
        return value > limit
    return value < limit if field in AT_LEAST else value != limit


def _cells(row: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in row.items() if name not in ("triton", "arch", "name", "faults")
    )


def _one_row_a_line(table: Table) -> str:
    versions = []
    for version in sorted(table):
        architectures = []
        for arch in sorted(table[version]):
            names = ",\n".join(
                f"   {json.dumps(name)}: {json.dumps(limits)}"
                for name, limits in sorted(table[version][arch].items())
            )
            architectures.append(f"  {json.dumps(arch)}: {{\n{names}\n  }}")
        versions.append(f" {json.dumps(version)}: {{\n" + ",\n".join(architectures) + "\n }")
    return "{\n" + ",\n".join(versions) + "\n}\n"
