"""The weights that a fine-tuning reports, as a file of their own to use afterwards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flava_ds.config.plain_files import loads
from flava_ds.errors import UserError
from flava_ds.evaluation.tuning.goals import Meaning
from flava_ds.storage.files import LocalFile
from flava_ds.storage.tensor_files import TensorFile, save_tensors

ENDING = ".best.safetensors"
"""What the file's name has after the task's."""
_KEY = "fine_tuned"


@dataclass(frozen=True)
class Facts:
    """What a file of kept weights says of itself."""

    task: str
    states: str
    """What its head reads: the states of "texts" or of "pairs"."""
    head: str
    """The head's class."""
    meaning: Meaning
    image_size: int
    """Edge of the images in pixels; 0 for texts."""
    update: int = 0
    """Updates made."""
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the fine-tuning depended on."""


def write_kept(path: Path, weights: Mapping[str, Tensor], facts: Facts) -> None:
    """Writes the weights of an encoder and its head atomically. Raises: CheckpointError."""
    save_tensors(weights, path, {_KEY: json.dumps(dataclasses.asdict(facts))})


def open_kept(path: Path) -> tuple[Facts, TensorFile]:
    """Opens a file of kept weights. Raises: UserError for a file of something else, CheckpointError."""
    if not path.is_file():
        raise UserError(
            f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give a file *{ENDING}"
        )
    file = TensorFile(lambda: LocalFile(path), str(path))
    try:
        return _facts(path, file.metadata), file
    except BaseException:
        file.close()
        raise


def _facts(path: Path, metadata: Mapping[str, str]) -> Facts:
    if _KEY not in metadata:
        raise UserError(
            f"{path}: holds no weights of a fine-tuning; give a file *{ENDING}, as `flava-ds evaluate "
            "--keep-weights` writes it"
        )
    try:
        read = loads(metadata[_KEY])
        meaning = read.pop("meaning")
        return Facts(**read, meaning=Meaning(**meaning | {"names": tuple(meaning["names"])}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: what it says of itself is not readable ({error}); write it again"
        ) from error
