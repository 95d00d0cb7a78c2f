"""Errors that are the user's to fix. Commands print them as one line, without a traceback unless --debug is
given.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Self


class UserError(Exception):
    """Names the file, the field or the sample, and says what to do."""

    on_all_ranks = False
    """Every rank raises the same error at the same point, so rank 0 alone speaks and nobody has to be told.
    """
    unusable: tuple[dict[str, Any], ...] = ()
    """Samples that were found unusable before a loader process raised this."""

    def everywhere(self) -> Self:
        """Marks the error as one that every rank raises; returns it."""
        self.on_all_ranks = True
        return self


class ConfigError(UserError):
    """A configuration that cannot be used."""


class DataError(UserError):
    """Shards or samples that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or made for something else."""


class DeviceMemoryError(UserError):
    """A step that does not fit into memory."""


class DesyncError(UserError):
    """Ranks that hold different values of what must be equal on all of them."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns '; did you mean ...?' for the nearest known word, or the empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
