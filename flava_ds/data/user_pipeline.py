"""Loads a user's pipeline for a stream from a Python file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flava_ds.errors import ConfigError, DataError


def load_pipeline(place: str, label: str) -> Callable[..., Any]:
    """Returns the function that 'path/to/file.py:function' names, after running that file.

    Raises: ConfigError when there is no such file or function; DataError when the file cannot be run.
    """
    path, _, name = place.rpartition(":")
    file = Path(path).expanduser()
    specification = importlib.util.spec_from_file_location(f"flava_ds_pipeline_{file.stem}", file)
    if not name or not file.is_file() or specification is None or specification.loader is None:
        raise ConfigError(
            f"{label}: pipeline '{place}' names no Python file; give it as path/to/file.py:function"
        )
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise DataError(
            f"{label}: pipeline file '{file}' cannot be run: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{label}: '{file}' has no function '{name}'")
    return function
