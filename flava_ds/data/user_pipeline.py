"""Runs a Python file of the user's, such as the one with the pipeline of a stream."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from flava_ds.errors import ConfigError, DataError


def run_file(file: Path, name: str) -> ModuleType:
    """Runs a file whose name ends in .py as the module `name`; what it raises leaves no module behind."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # as of every file of that ending
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up annotations there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_pipeline(place: str, label: str) -> Callable[..., Any]:
    """Returns the function that 'path/to/file.py:function' names, after running that file.

    Raises: ConfigError when there is no such file or function; DataError when the file cannot be run.
    """
    path, _, name = place.rpartition(":")
    file = Path(path).expanduser()
    if not name or not file.is_file() or file.suffix != ".py":
        raise ConfigError(
            f"{label}: pipeline '{place}' names no Python file; give it as path/to/file.py:function"
        )
    try:
        module = run_file(file, f"flava_ds_pipeline_{file.stem}")
    except Exception as error:
        raise DataError(
            f"{label}: pipeline file '{file}' cannot be run: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{label}: '{file}' has no function '{name}'")
    return function
