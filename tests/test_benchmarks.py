"""Whatever a benchmark imports from the project exists. Nothing else runs all of them."""

import ast
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
FILES = {path.stem: path for path in [*(ROOT / "tests").rglob("*.py"), *BENCHMARKS]}
"""Modules without a package, which benchmarks import by their bare name."""


@functools.cache
def defined_in(path: Path) -> set[str]:
    """Returns the names at the top level of a file, which is read and not run."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        else:
            names = (name for name in ast.walk(node) if isinstance(name, ast.Name))
            found |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return found


@functools.cache
def loaded(name: str) -> ModuleType | None:
    """Imports a module; None if there is none of this name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):
            return None
        raise  # a package of others that this module needs


def is_ours(module: str) -> bool:
    """Returns whether a module belongs to one of the two packages."""
    return module.split(".")[0] in ("flava_ds", "flava_kernels")


def exists(module: str, name: str) -> bool:
    """Returns whether a module of the project has `name`; True for a module of others."""
    if module in FILES:
        return name in defined_in(FILES[module])
    if not is_ours(module):
        return True
    found = loaded(module)
    return found is not None and (hasattr(found, name) or loaded(f"{module}.{name}") is not None)


def imported_by(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields each (module, name) that a file imports anywhere, and what it reads of a module so imported."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.module, alias.name
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module, _, name = alias.name.rpartition(".")
                if module:
                    yield module, name
                modules[alias.asname or alias.name] = alias.name
    modules = {own: name for own, name in modules.items() if is_ours(name) and loaded(name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
            yield modules[ast.unparse(node.value)], node.attr


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_exists(path):
    wanted = imported_by(ast.parse(path.read_text(encoding="utf-8")))
    gone = sorted({f"{module}.{name}" for module, name in wanted if not exists(module, name)})
    assert not gone, f"benchmarks/{path.name} imports what does not exist: {', '.join(gone)}"
