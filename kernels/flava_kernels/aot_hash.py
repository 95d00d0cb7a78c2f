"""Hashes of a compiled configuration's inputs, so that unchanged ones are not compiled again.

Code is hashed as Python parses it: comments, docstrings, layout and a function's place in its file do not
matter. A kernel's hash includes every function of this package that it calls and every constant that it
reads. Anything that comes with Triton is covered by Triton's version.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flava_kernels.triton_ops.launch import Launch

LENGTH = 12
"""Hexadecimal digits of a hash."""

MEASURING = ("aot_row.py", "assembly.py", "roofline.py", "triton_ir.py", "triton_ops/compiling.py")
"""The code that compiles and counts; a row's numbers depend on it as much as on the kernel."""

PLAIN = (bool, int, float, str, tuple, type(None))


def digest(*parts: str) -> str:
    """Returns the hash of some texts, in order."""
    lengths = [str(len(part)) for part in parts]
    return hashlib.sha256("\n".join([",".join(lengths), *parts]).encode()).hexdigest()[:LENGTH]


@functools.cache
def code(source: str) -> str:
    """Returns Python source without comments, docstrings and layout, in the same words on any Python: what
    ast.unparse and ast.dump write differs between versions.
    """
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [line for line in body if not _is_text(line)] or [ast.Pass()]
        if isinstance(node, ast.JoinedStr):  # Python 3.12.1 ends a format with nothing
            node.values = [part for part in node.values if getattr(part, "value", None) != ""]
    return _plain(tree)


def _plain(value: Any) -> str:
    """Writes a part of a syntax tree without what is empty, such as a field that later versions added."""
    if isinstance(value, ast.AST):
        fields = ((name, held) for name, held in ast.iter_fields(value) if held is not None and held != [])
        return f"{type(value).__name__}({', '.join(f'{name}={_plain(held)}' for name, held in fields)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return repr(value)


def _is_text(line: ast.AST) -> bool:
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def of_files(paths: Iterable[Path]) -> str:
    """Returns the hash of the code of Python files."""
    return digest(*(code(path.read_text(encoding="utf-8")) for path in paths))


def of_launch(launch: Launch, version: str) -> str:
    """Returns a configuration's hash.

    It covers kernel, types, constants, options, GPU, the compiler's full version and the counting code.
    """
    settings = dict(vars(launch), kernel=dependencies(launch.kernel.fn))
    settings |= {name: sorted(settings[name].items()) for name in ("signature", "constexprs")}
    return digest(
        version, measuring_code(), *(f"{name}: {value!r}" for name, value in sorted(settings.items()))
    )


def of_row(launch_hash: str, row: Mapping[str, Any]) -> str:
    """Returns a row's "configuration-numbers": a hash of its configuration, and one with the numbers."""
    numbers = (f"{name}={value}" for name, value in row.items() if name != "hash")
    return f"{launch_hash}-{digest(launch_hash, *numbers)}"


@functools.cache
def measuring_code() -> str:
    """Returns the hash of MEASURING."""
    return of_files(Path(__file__).parent / name for name in MEASURING)


@functools.cache
def dependencies(function: Callable[..., Any]) -> tuple[str, ...]:
    """Lists the code of a function and of those it calls, and the constants ("name = value") they read.

    Raises TypeError for a global name that is neither function nor constant: the compiler would read
    something that no hash covers.
    """
    found: dict[str, None] = {}
    waiting, seen = [function], {function}
    while waiting:
        current = waiting.pop(0)
        source = inspect.getsource(current)
        found[code(source)] = None
        for name, value in _globals(current, ast.parse(textwrap.dedent(source))):
            value = getattr(value, "value", value) if type(value).__name__ == "constexpr" else value
            callee = getattr(value, "fn", value)
            if isinstance(value, PLAIN):
                found[f"{name} = {value!r}"] = None
            elif not inspect.isfunction(callee):
                raise TypeError(
                    f"{current.__name__} reads {name}, a {type(value).__name__}, which has no hash: only "
                    "functions and constants do"
                )
            elif not _comes_with_triton(callee) and callee not in seen:
                seen.add(callee)
                waiting.append(callee)
    return tuple(found)


def _globals(function: Callable[..., Any], tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Yields the globals that a function reads, except Triton's and Python's; "module.name" for modules."""
    own = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    own |= {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }
    for names in sorted(_chains(tree)):
        if names[0] in own or hasattr(builtins, names[0]) and names[0] not in function.__globals__:
            continue
        value, used = function.__globals__[names[0]], 1
        while isinstance(value, ModuleType) and not _comes_with_triton(value) and used < len(names):
            value, used = getattr(value, names[used]), used + 1
        if not _comes_with_triton(value):
            yield ".".join(names[:used]), value


def _chains(node: ast.AST) -> set[tuple[str, ...]]:
    """Collects every name that is read, with its attributes: a.b.c is (a, b, c)."""
    names: list[str] = []
    inner = node
    while isinstance(inner, ast.Attribute):
        names.insert(0, inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        return {(inner.id, *names)}
    return {chain for child in ast.iter_child_nodes(inner) for chain in _chains(child)}


def _comes_with_triton(value: Any) -> bool:
    value = getattr(value, "fn", value)
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return (name or "").split(".")[0] == "triton" and type(value).__name__ != "constexpr"
