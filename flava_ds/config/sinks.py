"""What the configuration of a place for log records has; the package's own places have switches in
LoggingConfig.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flava_ds.config.variants import Variant

if TYPE_CHECKING:
    from flava_ds.watching.sinks import Sink


@dataclass(frozen=True, kw_only=True)
class SinkConfig(Variant):
    """Another place for the records of the log. A variant is defined where its sink is."""

    def check(self, where: str, config: Any) -> None:
        """Raises ConfigError for what cannot work, such as a package that is missing; `where` is its place,
        for messages.
        """

    def open(self, config: Any, description: dict[str, Any], first_step: int) -> Sink:
        """Opens it on rank 0 for the run of `config`, a Config, which begins or goes on at `first_step`;
        `description` is the header of log.jsonl."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its sink is opened")
