"""Errors that are the user's to mend. Commands print them as one line, without a traceback unless --debug is given."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Names the file, the field or the sample, and says what to do."""


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
