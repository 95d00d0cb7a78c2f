"""Reads the docstrings of dataclass fields, the strings below them, for --help and the reference; and their
annotations.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import typing
from itertools import pairwise
from typing import Any


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """Returns the string below each annotated field of `kind` and its bases.

    A field that is annotated again without a string keeps the base's. A class without source has none.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        try:
            definition = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):  # defined at run time, built in, or compiled only
            continue
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for node, below in pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and (text := _text(below)) is not None
            ):
                found[node.target.id] = " ".join(text.split())
    return found


@functools.cache
def field_hints(kind: type) -> dict[str, Any]:
    """Returns the annotations of the fields of `kind` and its bases, bounds included.

    Kept, because a walk over a configuration asks for them at every section, and to evaluate them takes most
    of its time.
    """
    return typing.get_type_hints(kind, include_extras=True)


def _text(node: ast.stmt) -> str | None:
    """Returns the value of a statement that is only a string; None for anything else."""
    value = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
    return value if isinstance(value, str) else None
