"""Where bytes of others come in, each with inputs to begin from, ways to change them, and what must hold.

An input is one string of bytes, whatever the surface, so that a corpus is a folder of files.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from fuzz.mutations import change_bytes

from flava_ds.config import Config
from flava_ds.recipes import resolve


class Surface:
    """One way in. `folder` is an empty one for every case; the working directory is another."""

    name: ClassVar[str]

    def seeds(self) -> Sequence[bytes]:
        """Returns inputs to begin from."""
        raise NotImplementedError

    def mutate(self, draw: random.Random, data: bytes) -> bytes:
        """Changes an input."""
        return change_bytes(draw, data)

    def check(self, folder: Path, data: bytes) -> None:
        """Reads an input. Raises: Finding."""
        raise NotImplementedError


def small_run() -> Config:
    """A configuration whose pictures and texts are small."""
    config = resolve("flava_debug", [])
    return replace(config, data=replace(config.data, num_workers=0))
