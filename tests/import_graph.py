"""Which files of the project import which, read from their source: nothing is imported."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("", "kernels", "tests", "docs")
"""Where `import name` finds a module of the project, beside the folder of the file that says it."""


@functools.cache
def imported_by(path: Path, packages: bool = True) -> frozenset[Path]:
    """Returns the project's files that a file imports, in functions and for types, too; without __init__.py
    unless `packages`.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = {file for name in names if (file := _file_of(name, path.parent))}
    return frozenset(file for file in found - {path} if packages or file.name != "__init__.py")


def all_imported_by(paths: Iterable[Path]) -> list[Path]:
    """Returns files, those that they import, and so on. A package's __init__.py is left out: it only
    collects.
    """
    found, waiting = set(), list(paths)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += imported_by(path, packages=False)
    return sorted(found)


def _file_of(name: str, folder: Path) -> Path | None:
    for place in (folder, *(ROOT / place for place in PLACES)):
        base = place.joinpath(*name.split("."))
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file() and file.is_relative_to(ROOT):
                return file
    return None
