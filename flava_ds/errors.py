"""Errors that the user can fix. Commands print them as one line, and a traceback only with --debug."""

from __future__ import annotations

import difflib
import errno
import re
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self


class UserError(Exception):
    """Names the file, field or sample, and says what to do."""

    on_all_ranks = False
    """Whether every rank raises this error at the same point, so that rank 0 can report it alone."""
    unusable: tuple[dict[str, Any], ...] = ()
    """Samples found unusable before a dataloader worker raised this."""

    @classmethod
    def of_system(cls, error: OSError) -> Self:
        """Returns the error that says what the system says of a file."""
        way_out = ulimit_or(error, "name another place, or fix this one")
        return cls(f"{error.filename}: {error.strerror}; {way_out}")

    def everywhere(self) -> Self:
        """Marks the error as raised by every rank; returns it."""
        self.on_all_ranks = True
        return self


class ConfigError(UserError):
    """A configuration that cannot be used."""


class DataError(UserError):
    """Shards or samples that cannot be used."""


class MissingPicturesError(DataError):
    """Pictures that a split names and its folder lacks."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or made for something else."""


class DeviceMemoryError(UserError):
    """A step that does not fit into memory."""


class DesyncError(UserError):
    """Ranks whose values differ although they must be equal."""


def ulimit_or(error: OSError, otherwise: str) -> str:
    """Returns what to do about an error of the system: raise its limit of open files, or `otherwise`."""
    too_many = error.errno in (errno.EMFILE, errno.ENFILE)
    return "raise the limit of open files (ulimit -n)" if too_many else otherwise


def first_of(names: Sequence[str], most: int = 10) -> str:
    """Returns the first names and how many there are beyond them: 'a, b and 3 more'."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def number_of(count: int, thing: str) -> str:
    """Returns '1 shard', '2 shards'."""
    return f"{count} {thing}{'s' * (count != 1)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns '; did you mean ...?' for the closest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def nearest_choice(message: str) -> str:
    """Returns what did_you_mean says of a parser's complaint about a choice, argparse's or tyro's."""
    mistyped = re.search(r"invalid choice:? '(.*?)' .*?\((?:choose from )?([^()]*)\)", message)
    return did_you_mean(mistyped[1], re.findall(r"[\w-]+", mistyped[2])) if mistyped else ""


def own_place(error: BaseException) -> str | None:
    """Returns FILE:LINE of the last line of the user's code that an exception passed; None without one."""
    places = sysconfig.get_paths()
    others = (str(Path(__file__).parent), *(places[kind] for kind in ("stdlib", "purelib", "platlib")))
    own = [frame for frame in _frames(error) if not frame.filename.startswith(others)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def told_at(error: BaseException) -> str:
    """Describes an exception in one line, with the last line of the user's own code that it passed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    last = _frames(error)[-1]
    words = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    return f"{own_place(error) or f'{last.filename}:{last.lineno}'}: {words}"


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen")
    ]
