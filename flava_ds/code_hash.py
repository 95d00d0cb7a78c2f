"""Identifies code by its sources, without importing it."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

LETTERS = 16


def hash_of_sources(*packages: str) -> str:
    """Returns a hash of the names and contents of all Python files of importable packages.

    Raises: ModuleNotFoundError for a package that is not installed.
    """
    digest = hashlib.sha256()
    for package in packages:
        folder = folder_of(package)
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:LETTERS]


def folder_of(package: str) -> Path:
    """Returns the folder of an importable package. Raises: ModuleNotFoundError."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"package '{package}' is not installed", name=package)
    return Path(spec.origin).parent
