"""The base configuration of custom log sinks; LoggingConfig has switches for the built-in ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flava_ds.config.variants import Variant

if TYPE_CHECKING:
    from flava_ds.watching.sinks import Sink


@dataclass(frozen=True, kw_only=True)
class SinkConfig(Variant):
    """A custom destination for log records. A variant is defined next to its sink."""

    def check(self, where: str, config: Any) -> None:
        """Raises ConfigError for problems such as a missing package; `where` names the sink."""

    def open(self, config: Any, description: dict[str, Any], first_step: int) -> Sink:
        """Opens the sink on rank 0 for the run of `config`, a Config, that starts or resumes at `first_step`.

        `description` is the header of log.jsonl.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement open")
