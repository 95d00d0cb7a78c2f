"""Bounds beside the types of fields: what each allows, where the walk finds them, what it says, and what the
help shows.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from flava_ds.config.bounds import (
    ANY_FLOAT,
    Above,
    AtLeast,
    AtMost,
    Below,
    Between,
    Length,
    Range,
    Steps,
    check_bounds,
    described,
    spelled,
)
from flava_ds.config.options import override
from flava_ds.errors import ConfigError

Share = Annotated[float, Between(0, 1)]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section."""

    rate: Annotated[float, AtLeast(0), AtMost(10)] = 0.1
    """How fast, per step."""
    free: float = 1.0
    limit: Annotated[float, ANY_FLOAT] = math.inf
    """May be infinite."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A tree with every kind of field."""

    name: str = "x"
    count: Annotated[int, AtLeast(1), AtMost(2**24)] = 1
    mode: Literal["a", "b"] = "a"
    on: bool = False
    when: Steps | None = None
    also: Annotated[int | None, Below(5)] = None
    pair: tuple[Share, Share] = (0.0, 1.0)
    window: tuple[Steps, Annotated[int, AtLeast(1)]] | None = None
    many: Annotated[tuple[Annotated[float, Above(0)], ...], Length(1, 3)] = (1.0,)
    part: Part = field(default_factory=Part)
    parts: dict[str, Part] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    row: tuple[Part, ...] = ()


def test_the_defaults_and_every_end_that_is_allowed_pass():
    check_bounds(Whole())
    check_bounds(
        Whole(
            count=2**24,
            when=10**9,
            also=4,
            pair=(1, 0),
            window=(0, 1),
            many=(1e-300, 2.0, 3.0),
            shares={"a": 1.0},
        )
    )
    check_bounds(Whole(part=Part(rate=10), parts={"a": Part(limit=math.nan)}, row=(Part(rate=0),)))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (Whole(count=0), "count is 0; it must be at least 1"),
        (Whole(count=2**24 + 1), "count is 16777217; it must be at most 2**24"),
        (Whole(count=10**400), "; it must be at most 2**24"),
        (Whole(count=1.5), "count is 1.5; expected int"),
        (Whole(count=True), "count is True; expected int"),
        (Whole(name=3), "name is 3; expected str"),
        (Whole(on=1), "on is 1; expected bool"),
        (Whole(mode="c"), "mode is 'c'; choose one of 'a', 'b'"),
        (Whole(when=-1), "when is -1; it must be at least 0"),
        (Whole(when=10**9 + 1), "when is 1000000001; it must be at most 10**9"),
        (Whole(also=5), "also is 5; it must be below 5"),
        (Whole(pair=(0.5, 1.5)), "pair is (0.5, 1.5); each must lie between 0 and 1"),
        (Whole(pair=(0.5, math.nan)), "pair is (0.5, nan); each must lie between 0 and 1"),
        (Whole(pair=(0.5,)), "pair is (0.5,); expected 2 values"),
        (Whole(window=(3, 0)), "window is (3, 0); number 2 must be at least 1"),
        (Whole(window=(-3, 1)), "window is (-3, 1); number 1 must be at least 0"),
        (Whole(window=3), "window is 3; expected a list"),
        (Whole(many=()), "many is (); it must have 1 to 3 entries"),
        (Whole(many=(1.0,) * 4), "it must have 1 to 3 entries"),
        (Whole(many=(1.0, 0.0)), "many is (1.0, 0.0); each must be above 0"),
        (Whole(many=(1.0, math.inf)), "many is (1.0, inf); each must be finite"),
        (Whole(part=Part(rate=-1.0)), "part.rate is -1; it must be at least 0"),
        (Whole(part=Part(rate=math.nan)), "part.rate is nan; it must be at least 0"),
        (Whole(part=Part(rate=1e300)), "part.rate is 1e+300; it must be at most 10"),
        (Whole(part=Part(free=math.inf)), "part.free is inf; it must be finite"),
        (Whole(part=Part(free=math.nan)), "part.free is nan; it must be finite"),
        (Whole(part=Part(free="fast")), "part.free is 'fast'; expected float"),
        (Whole(parts={"one": Part(rate=11.0)}), "parts.one.rate is 11; it must be at most 10"),
        (Whole(shares={"one": 2.0}), "shares.one is 2; it must lie between 0 and 1"),
        (Whole(row=(Part(), Part(rate=-0.5))), "row.1.rate is -0.5; it must be at least 0"),
    ],
)
def test_a_value_outside_is_named_with_what_it_must_be(tree, message):
    with pytest.raises(ConfigError) as caught:
        check_bounds(tree)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (AtLeast(1), (1, 5, math.inf), (0.999, -math.inf), "be at least 1"),
        (Above(0), (1e-300,), (0, -1), "be above 0"),
        (AtMost(2), (2, -math.inf), (2.001,), "be at most 2"),
        (Below(2**32), (2**32 - 1,), (2**32,), "be below 2**32"),
        (Between(0, 1), (0, 0.5, 1), (-1e-9, 1 + 1e-9), "lie between 0 and 1"),
        (Range(0, 1, open_most=True), (0, 0.999), (1,), "be at least 0 and below 1"),
        (Range(0, 1, open_least=True), (1e-9, 1), (0,), "be above 0 and at most 1"),
        (Range(), (math.inf, 0), (), "be finite"),
    ],
)
def test_ranges(allowed, inside, outside, words):
    assert all(allowed.holds(value) for value in inside) and not any(
        allowed.holds(value) for value in (*outside, math.nan)
    )
    assert str(allowed) == words


def test_bounds_are_spelled_as_a_reader_would():
    assert [spelled(bound) for bound in (0, 0.5, 10, 10**9, 2**24, 604_800, 1e-12)] == [
        "0",
        "0.5",
        "10",
        "10**9",
        "2**24",
        "604800",
        "1e-12",
    ]


def test_sentences_for_the_help():
    assert described(Annotated[float, AtLeast(0), AtMost(10)]) == "It must be at least 0 and at most 10."
    assert described(Steps | None) == "It must be at least 0 and at most 10**9."
    assert described(tuple[Share, Share]) == "Each must lie between 0 and 1."
    assert (
        described(tuple[Steps, Share])
        == "Number 1 must be at least 0 and at most 10**9. Number 2 must lie between 0 and 1."
    )
    assert described(Annotated[tuple[float, ...], Length(2)]) == "It must have at least 2 entries."
    assert described(Annotated[float, ANY_FLOAT]) == described(str) == described(tuple[int, ...]) == ""


def test_help_shows_meaning_and_bounds(capsys):
    with pytest.raises(SystemExit):
        override(Whole(), ["--help"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (
        "--part.rate FLOAT How fast, per step. It must be at least 0 and at most 10. (default: 0.1)"
        in printed
    )
    assert "--pair FLOAT FLOAT Each must lie between 0 and 1. (default: 0.0 1.0)" in printed
    assert "--name STR (default: x)" in printed


@pytest.mark.parametrize("columns", ["1", "40", "60"])
def test_help_of_a_terminal_too_narrow_to_read_is_as_wide_as_of_the_narrowest(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        override(Whole(), ["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) == 60
    assert os.environ["COLUMNS"] == columns


def test_the_command_line_reads_bounded_fields():
    words = [
        "--count",
        "3",
        "--when",
        "7",
        "--pair",
        "0.1",
        "0.2",
        "--window",
        "1",
        "2",
        "--many",
        "1",
        "2",
        "--part.limit",
        "nan",
    ]
    read = override(Whole(), words)
    assert (read.count, read.when, read.pair, read.window, read.many) == (
        3,
        7,
        (0.1, 0.2),
        (1, 2),
        (1.0, 2.0),
    )
    assert math.isnan(read.part.limit)
