"""The base configuration of custom readers: sources whose samples are not in the package's shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flava_ds.config.variants import Variant

if TYPE_CHECKING:
    from flava_ds.data.sources import Source


@dataclass(frozen=True, kw_only=True)
class ReaderConfig(Variant):
    """A custom reader. A variant is defined next to its source."""

    def build(self, config: Any, name: str) -> Source:
        """Builds source `name` of `config`, a Config, in the trainer's process; see flava_ds/data/sources.py.

        Raises: DataError or ConfigError when it cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement build")
