"""What the configuration of a kind of source has that is none of the package's: samples that lie in no shards
of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flava_ds.config.variants import Variant

if TYPE_CHECKING:
    from flava_ds.data.sources import Source


@dataclass(frozen=True, kw_only=True)
class ReaderConfig(Variant):
    """Another way to samples. A variant is defined where its source is."""

    def build(self, config: Any, name: str) -> Source:
        """Builds the source `name` of `config`, a Config, in the trainer's process; see
        flava_ds/data/sources.py.

        Raises: DataError or ConfigError when it cannot serve.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its source is built")
