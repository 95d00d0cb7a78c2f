"""Checks the folders that commands are given: runs and models."""

from __future__ import annotations

import shlex
from pathlib import Path

from flava_ds.errors import UserError


def require_model(path: Path) -> None:
    """Raises UserError unless `path` is a folder with the config.json of a model or run."""
    file = path / "config.json"
    if file.is_file():
        return
    if file.exists() and not file.is_dir():
        raise UserError(f"{file}: is not a regular file; name the folder of a run or model")
    inside, beside = (sorted(at.glob("*/config.json")) for at in (path, path.parent))
    known = [str(found.parent) for found in inside or beside if found.is_file()]
    there = "no such folder" if not path.is_dir() else "holds no config.json"
    hint = f"there are {', '.join(known[:8])}" if known else "train one with `flava-ds train RECIPE`"
    raise UserError(f"{path}: {there}, so it is not a run; {hint}")


def require_run(path: Path) -> None:
    """Raises UserError unless `path` is the folder of a run."""
    require_model(path)
    if b'"model_type"' in (path / "config.json").read_bytes():
        raise UserError(
            f"{path}: is a Hugging Face model, not a run; `flava-ds convert {shlex.quote(str(path))} "
            "--to flava_ds OUT` converts it to initial_weights"
        )
