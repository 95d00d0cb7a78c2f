"""All ways in, by name."""

from __future__ import annotations

from fuzz.data_surfaces import Indexes, Patterns, Pictures, Shards, SkipLists
from fuzz.run_surfaces import Checkpoints, Commands, Configurations
from fuzz.surface import Surface

KINDS = (Shards, Indexes, Pictures, Checkpoints, Configurations, Commands, Patterns, SkipLists)
SURFACES: dict[str, Surface] = {kind.name: kind() for kind in KINDS}
