"""Checks the folders that commands are given: runs and models."""

from __future__ import annotations

import shlex
from pathlib import Path

from flava_ds.errors import UserError


def require_model(path: Path) -> None:
    """Raises UserError unless `path` is a folder with the config.json of a model or run."""
    if (path / "config.json").is_file():
        return
    known = sorted(str(found.parent) for found in path.parent.glob("*/config.json"))
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
