"""Bounds on configuration fields, written next to their types: `lr: Annotated[float, Between(0, 10)]`.

Every number must be finite unless its field says `ANY_FLOAT`. One walk checks a whole tree, wherever it comes
from: a recipe, JSON or the command line.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from flava_ds.config.places import alternatives, check_sections, places, without_none
from flava_ds.config.strict_json import convert
from flava_ds.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The values from `least` to `most`, including each end unless it is open."""

    least: float = -math.inf
    most: float = math.inf
    open_least: bool = False
    open_most: bool = False

    def holds(self, value: float) -> bool:
        """Returns whether `value` is in the range; NaN never is."""
        above = value > self.least if self.open_least else value >= self.least
        return above and (value < self.most if self.open_most else value <= self.most)

    def __str__(self) -> str:
        """Words the range as a requirement, e.g. 'be at least 0'."""
        words = []
        if self.least > -math.inf:
            words.append(f"{'above' if self.open_least else 'at least'} {spelled(self.least)}")
        if self.most < math.inf:
            words.append(f"{'below' if self.open_most else 'at most'} {spelled(self.most)}")
        if len(words) == 2 and not (self.open_least or self.open_most):
            return f"lie between {spelled(self.least)} and {spelled(self.most)}"
        return f"be {' and '.join(words)}" if words else "be finite"


def AtLeast(least: float) -> Range:
    """Allows `least` and above."""
    return Range(least=least)


def Above(least: float) -> Range:
    """Allows only values above `least`."""
    return Range(least=least, open_least=True)


def AtMost(most: float) -> Range:
    """Allows `most` and below."""
    return Range(most=most)


def Below(most: float) -> Range:
    """Allows only values below `most`."""
    return Range(most=most, open_most=True)


def Between(least: float, most: float) -> Range:
    """Allows both ends and everything in between."""
    return Range(least, most)


ANY_FLOAT = "any float"
"""Allows a field to be infinite or NaN."""


@dataclass(frozen=True)
class Length:
    """The number of entries of a tuple."""

    least: int
    most: float = math.inf

    def __str__(self) -> str:
        """Words the length as a requirement."""
        if self.least == self.most:
            return f"have {self.least} entries"
        if self.most == math.inf:
            return f"have at least {self.least} entries"
        return f"have {self.least} to {self.most} entries"


Share = Annotated[float, Between(0, 1)]
"""A share or a probability."""
Steps = Annotated[int, AtLeast(0), AtMost(10**9)]
"""A number of optimizer steps; for fields where 0 means never."""


def check_bounds(tree: Any, name: str = "") -> None:
    """Raises ConfigError for the first section or value of a tree (or section `name`) of wrong type or out of
    bounds.
    """
    check_sections(tree)
    for place in places(tree, None, (name,) if name else ()):
        if place.base is None:
            check_value(place.name, place.hint, place.value)


def check_value(name: str, hint: Any, value: Any) -> None:
    """Raises ConfigError unless `value` satisfies the annotation `hint`."""
    convert(hint, value, f"{name}.")
    if (must := complaint(hint, value)) is not None:
        raise ConfigError(f"{name} is {f'{value:g}' if isinstance(value, float) else value}; {must}")


def complaint(hint: Any, value: Any) -> str | None:
    """Words the first bound that `value` breaks, e.g. 'it must be at least 0'; None if it breaks none."""
    if isinstance(value, tuple):
        lengths = [bound for bound in _bounds(hint) if isinstance(bound, Length)]
        for length in lengths:
            if not length.least <= len(value) <= length.most:
                return f"it must {length}"
        return _complaint_of_entries(_entry_hints(hint, len(value)), value)
    if isinstance(value, Mapping):
        entry = _entry_hints(hint, 2)[1]
        found = [(name, must) for name, one in value.items() if (must := complaint(entry, one))]
        return found[0][1].replace("it", f"that of '{found[0][0]}'", 1) if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    broken = [bound for bound in _bounds(hint) if isinstance(bound, Range) and not bound.holds(value)]
    infinite = isinstance(value, float) and not math.isfinite(value)
    if not broken and infinite and ANY_FLOAT not in _bounds(hint):
        broken = [Range()]
    return f"it must {broken[0]}" if broken else None


def _complaint_of_entries(hints: list[Any], values: tuple[Any, ...]) -> str | None:
    """Words the first complaint about a tuple's entries, with the entry's number if their bounds differ."""
    alike = all(hint == hints[0] for hint in hints)
    for number, (hint, value) in enumerate(zip(hints, values, strict=True), 1):
        if (must := complaint(hint, value)) is not None:
            return must.replace("it", "each" if alike else f"number {number}", 1)
    return None


def described(hint: Any) -> str:
    """Describes an annotation's bounds in a sentence; empty if any value is allowed."""
    bounds = [str(bound) for bound in _bounds(hint) if bound != ANY_FLOAT]
    words = []
    if bounds:
        words.append(f"It must {' and '.join([bounds[0], *(b.removeprefix('be ') for b in bounds[1:])])}.")
    kind = without_none(hint)
    if typing.get_origin(kind) is tuple:
        hints = [entry for entry in typing.get_args(kind) if entry is not Ellipsis]
        alike = all(entry == hints[0] for entry in hints)
        entries = [described(entry) for entry in (hints[:1] if alike else hints)]
        words += [
            sentence.replace("It", "Each" if len(entries) == 1 else f"Number {number}", 1)
            for number, sentence in enumerate(entries, 1)
            if sentence
        ]
    return " ".join(words)


def _entry_hints(hint: Any, count: int) -> list[Any]:
    """Returns the annotation of each of a tuple's `count` entries."""
    entries = typing.get_args(without_none(hint))
    return [entries[0]] * count if len(entries) == 2 and entries[1] is Ellipsis else list(entries)


def _bounds(hint: Any) -> list[Any]:
    """Returns the metadata of an annotation, even if it is optional."""
    parts = [hint, *(part for part in alternatives(hint) if part != hint)]
    return [bound for part in parts if typing.get_origin(part) is Annotated for bound in part.__metadata__]


def spelled(bound: float) -> str:
    """Formats a bound for readers: 2**32 and 10**9 as powers, floats without trailing digits."""
    if isinstance(bound, int) and bound >= 10**5:
        power, zeros = bound.bit_length() - 1, len(str(bound)) - 1
        return f"2**{power}" if bound == 2**power else f"10**{zeros}" if bound == 10**zeros else str(bound)
    return f"{bound:g}"
