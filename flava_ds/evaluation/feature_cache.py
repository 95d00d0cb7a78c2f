"""Image features on disk, in parts: a probe that is run again encodes nothing, an interrupted one goes on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from flava_ds.evaluation.labelled import Seen
from flava_ds.evaluation.protocols import Progress
from flava_ds.evaluation.shares import Share
from flava_ds.storage.tensor_files import save_tensors
from flava_ds.tensor_hash import hash_of_tensors

PART_BATCHES = 64
"""Batches of a part: what an interruption loses at most."""
MAKER = "flava_ds image features 1"
"""Changes when features of the same pictures would be others."""


def hash_of_weights(module: nn.Module, settings: object) -> str:
    """Hashes a model's tensors, and the settings that it was built with (such as the mean of its pixels)."""
    return hash_of_tensors(module.state_dict(), (MAKER, settings))


@dataclass(frozen=True)
class FeatureCache:
    """A folder of features of one model; those of other weights are said, and computed anew."""

    folder: Path
    weights: str
    """What `hash_of_weights` says of the model."""
    tell: Progress = lambda _: None
    _told: set[str] = field(default_factory=set)

    def part(
        self,
        pictures: Seen,
        size: int,
        number: int,
        rows: range,
        encode: Callable[[], Tensor],
        share: Share,
    ) -> Tensor:
        """Returns a part's features, from its file or from `encode`, which a file is then written of. Only
        the main process of `share` reads and writes files, so that all agree on what is known.

        Shapes:
            returns  [len(rows) d]
        """
        title = re.sub(r"[^a-z0-9_]+", "_", pictures.title.lower())
        stem = f"{title}_{hashlib.sha256(f'{pictures.identity} {size}'.encode()).hexdigest()[:16]}"
        file = self.folder / f"{stem}.{number:05d}.safetensors"
        facts = {"weights": self.weights, "pictures": pictures.identity, "size": str(size), "rows": str(rows)}
        known = share.from_main(lambda: self._read(file, stem, facts))
        if known is not None:
            return known
        features = encode()
        share.from_main(lambda: self._write(file, features, facts))
        return features

    @staticmethod
    def _write(file: Path, features: Tensor, facts: dict[str, str]) -> None:
        content = {"content": hash_of_tensors({"features": features})}
        save_tensors({"features": features.cpu()}, file, facts | content)

    def _read(self, file: Path, stem: str, facts: dict[str, str]) -> Tensor | None:
        """Returns a file's features; None where there is none, or none of these weights."""
        from safetensors import safe_open

        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as stored:
                found, features = stored.metadata() or {}, stored.get_tensor("features")
        except Exception as error:  # a damaged file ends in any kind of error
            self._say(stem, f"{file}: not readable ({error})")
            return None
        if found.get("content") != hash_of_tensors({"features": features}):
            self._say(stem, f"{file}: damaged, its features are not those that were written")
            return None
        differ = [name for name, value in facts.items() if found.get(name) != value]
        if differ:
            name = differ[0]
            self._say(stem, f"{file}: of other {name} ({found.get(name)}, here {facts[name]})")
        return None if differ else features

    def _say(self, stem: str, reason: str) -> None:
        if stem not in self._told:
            self._told.add(stem)
            self.tell(f"{reason}; its features are computed anew")
