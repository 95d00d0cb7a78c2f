"""The weights that a fine-tuning reports, as a file of their own to use afterwards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flava_ds.config.plain_files import loads
from flava_ds.errors import UserError
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM, WHOLE_TRANSFORM
from flava_ds.evaluation.tuning.goals import Meaning
from flava_ds.storage.files import LocalFile
from flava_ds.storage.tensor_files import TensorFile

ENDING = ".best.safetensors"
"""What the file's name has after the task's."""
TEXTS, PAIRS_OF_TEXTS, IMAGES, IMAGES_WITH_TEXT = "texts", "pairs of texts", "images", "images with a text"
"""What a head reads the states of."""
TRANSFORMS = {IMAGES: CLIP_TRANSFORM, IMAGES_WITH_TEXT: WHOLE_TRANSFORM}
"""How pictures are resized for it."""
_KEY = "fine_tuned"


@dataclass(frozen=True)
class Facts:
    """What a file of kept weights says of itself."""

    task: str
    states: str
    """What its head reads the states of: TEXTS, PAIRS_OF_TEXTS, IMAGES or IMAGES_WITH_TEXT."""
    head: str
    """The head's class, if it is one of HEADS; else empty."""
    meaning: Meaning
    image_size: int
    """Edge of the images in pixels; 0 for texts."""
    words: str
    """How texts become ids, see `words_of`."""
    update: int = 0
    """Updates made."""
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the fine-tuning depended on."""

    def to_metadata(self) -> dict[str, str]:
        """Returns it as a safetensors file's metadata."""
        return {_KEY: json.dumps(dataclasses.asdict(self))}

    def is_of(self, other: Facts) -> bool:
        """Returns whether two files are of the same fine-tuning, after however many updates."""
        return dataclasses.replace(self, update=other.update) == other


def words_of(model: FrozenModel) -> str:
    """Identifies a model's vocabulary, and after how many tokens it truncates texts."""
    return f"{model.words} {sorted(model.most_tokens.items())}"


def open_kept(path: Path) -> tuple[Facts, TensorFile]:
    """Opens a file of kept weights. Raises: UserError for a file of something else, or a damaged one."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {problem}; give a file *{ENDING}")
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
        found = Facts(**read, meaning=Meaning(**meaning | {"names": tuple(meaning["names"])}))
        texts = (found.task, found.states, found.head, found.words, *found.meaning.names)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name is no text")
        if found.states not in (TEXTS, PAIRS_OF_TEXTS, *TRANSFORMS):
            raise ValueError(f"states of {found.states}")
        if type(found.image_size) is not int or type(found.update) is not int:
            raise ValueError("image_size and update are whole numbers")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: what it says of itself is not readable ({error})") from error
