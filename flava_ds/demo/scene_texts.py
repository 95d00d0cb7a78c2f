"""What may be said and asked about a scene: captions, questions with answers, statements that may follow.

All are pure functions of the scene and a seed. A drawing is called by its label, and by its colour where one
prevails; sides are those of centres that are clearly apart.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from flava_ds.demo.captions import seeded
from flava_ds.demo.concepts import names_any, words_of
from flava_ds.demo.scenes import COLOURS, LEAST_APART, MOST, Drawings, Scene, offset

SIDES = ("left", "right", "above", "below")
OTHER_SIDE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLACED = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
NUMBERS = tuple(str(number) for number in range(MOST + 1))
ANSWERS = ("yes", "no", *NUMBERS, *COLOURS, *SIDES)
KINDS = ("count", "presence", "colour", "side")
"""Kinds of questions, asked in turn."""
FITS = ("contradicted", "neutral", "entailed")
"""How a statement relates to a scene: it is wrong about drawings that are shown, it speaks of a drawing that
is not shown, or it holds.
"""
MOST_CAPTIONS = 6
_PLAIN = 1.5
"""Ratio of the distances along and across a side from which on no other side can be meant."""
_LARGER = 1.6
"""Ratio of the areas of boxes from which on one drawing is larger."""
_LIKE_CONSONANTS = ("one", "once", "eu", "ewe", "uni", "ufo")
_COLOUR_WORDS = frozenset(words_of(word) for word in (*COLOURS, "white", "gray", "golden", "dark", "light"))


@dataclass(frozen=True)
class Question:
    """A question on a scene, its kind and its answer, one of ANSWERS."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Statement:
    """A sentence, and how it relates to the scene: one of FITS."""

    text: str
    fit: str


def captions(drawings: Drawings, scene: Scene, key: str) -> list[str]:
    """Writes 1 to 6 distinct captions: sides, as "a pig left of a red heart", and lists of what there is."""
    draw = seeded(f"captions {key}")
    found = []
    for one, other, side in sides(scene):
        names = [_called(drawings, scene.rows[place], draw) for place in (one, other)]
        found.append(f"{names[0]} {PLACED[side]} {names[1]}")
    draw.shuffle(found)
    names = [_called(drawings, row, draw) for row in draw.sample(scene.rows, len(scene))]
    listed = ", ".join(names[:-1]) + " and " + names[-1]
    return list(dict.fromkeys([*found[: MOST_CAPTIONS - 1], listed]))


def sides(scene: Scene, *, plain: bool = False) -> list[tuple[int, int, str]]:
    """Lists (one, other, side) for ordered pairs of drawings, by their places in the scene: the centre of one
    is clearly on that side of the other's. A diagonal pair has two sides, and none if they must be `plain`.
    """
    found = []
    for one, other in itertools.permutations(range(len(scene)), 2):
        across, down = offset(scene.boxes[one], scene.boxes[other])
        for along, beside, names in ((across, down, SIDES[:2]), (down, across, SIDES[2:])):
            if abs(along) >= max(LEAST_APART, _PLAIN * abs(beside) if plain else 0):
                found.append((one, other, names[along > 0]))
    return found


def ask(drawings: Drawings, scene: Scene, key: str, number: int) -> Question:
    """Asks one question; `number` chooses its kind, or the next one that the scene allows."""
    draw = seeded(f"question {key}")
    for turn in range(len(KINDS)):
        kind = KINDS[(number + turn) % len(KINDS)]
        found = _ASKED[kind](drawings, scene, draw)
        if found is not None:
            return Question(*found, kind)
    raise AssertionError("how many drawings there are can always be asked")


def state(drawings: Drawings, scene: Scene, key: str, number: int) -> Statement:
    """States something; `number` chooses how it fits, so that all of FITS are equally frequent.

    A neutral statement has the form and the words of the others, with a drawing that is not shown.
    """
    draw, fit = seeded(f"statement {key}"), FITS[number % len(FITS)]
    for stated in draw.sample(_STATED, len(_STATED)):
        text = stated(drawings, scene, fit, draw)
        if text is not None:
            return Statement(text, fit)
    raise AssertionError("a drawing is always on some side of another")


def names_colour(label: str) -> bool:
    """Says whether a label has the word of a colour, so that its colour need not be seen."""
    return names_any(label, _COLOUR_WORDS)


def _called(drawings: Drawings, row: int, draw: random.Random) -> str:
    """Returns a drawing's label with an article, in half of the cases with its colour."""
    colour, label = drawings.colours[row], drawings.labels[row]
    coloured = colour and not names_colour(label) and draw.random() < 0.5
    return with_article(label, f"{colour} " if coloured else "")


def with_article(label: str, colour: str = "") -> str:
    """Puts an article and a colour before a label, unless it is a plural: "an owl", "red shoes"."""
    last, name = label.split(" ")[-1], colour + label
    if label.startswith("flag of "):
        return f"the {name}"
    if last.endswith("s") and not last.endswith(("ss", "us", "'s")) and " of " not in label:
        return name
    first = name.split(" ")[0].lower()
    is_vowel = first.startswith(("a", "e", "i", "o", "u", "hour")) and not first.startswith(_LIKE_CONSONANTS)
    return f"an {name}" if is_vowel else f"a {name}"


def _absent(drawings: Drawings, scene: Scene, draw: random.Random) -> int:
    """Draws a drawing of a label that the scene does not show."""
    shown = {drawings.labels[row] for row in scene.rows}
    while True:
        row = draw.randrange(len(drawings))
        if drawings.labels[row] not in shown:
            return row


def _coloured(drawings: Drawings, scene: Scene) -> list[int]:
    """Lists the drawings whose colour can be asked for."""
    return [row for row in scene.rows if drawings.colours[row] and not names_colour(drawings.labels[row])]


def _ask_count(drawings: Drawings, scene: Scene, draw: random.Random) -> tuple[str, str] | None:
    """Asks how many drawings there are, or how many of a colour, if no colour is in doubt."""
    colours = [drawings.colours[row] for row in scene.rows]
    if None in colours or draw.random() < 0.5:
        return "how many drawings are there?", str(len(scene))
    colour = draw.choice([*colours, draw.choice(COLOURS)])
    return f"how many {colour} drawings are there?", str(colours.count(colour))


def _ask_presence(drawings: Drawings, scene: Scene, draw: random.Random) -> tuple[str, str] | None:
    """Asks whether something is shown; half of the answers are yes."""
    there = draw.random() < 0.5
    row = draw.choice(scene.rows) if there else _absent(drawings, scene, draw)
    return f"is there {with_article(drawings.labels[row])}?", "yes" if there else "no"


def _ask_colour(drawings: Drawings, scene: Scene, draw: random.Random) -> tuple[str, str] | None:
    """Asks for a drawing's colour."""
    known = _coloured(drawings, scene)
    if not known:
        return None
    row = draw.choice(known)
    return f"what colour is the {drawings.labels[row]}?", str(drawings.colours[row])


def _ask_side(drawings: Drawings, scene: Scene, draw: random.Random) -> tuple[str, str] | None:
    """Asks on which side of another drawing one is."""
    known = sides(scene, plain=True)
    if not known:
        return None
    one, other, side = draw.choice(known)
    names = [drawings.labels[scene.rows[place]] for place in (one, other)]
    return f"on which side of the {names[1]} is the {names[0]}?", side


_ASKED: dict[str, Callable[[Drawings, Scene, random.Random], tuple[str, str] | None]] = {
    "count": _ask_count,
    "presence": _ask_presence,
    "colour": _ask_colour,
    "side": _ask_side,
}


def _state_side(drawings: Drawings, scene: Scene, fit: str, draw: random.Random) -> str | None:
    known = sides(scene)
    one, other, side = draw.choice(known)
    said = OTHER_SIDE[side] if fit == "contradicted" else side
    names = _names(drawings, scene, fit, draw, one, other)
    return f"the {names[0]} is {PLACED[said]} the {names[1]}"


def _state_size(drawings: Drawings, scene: Scene, fit: str, draw: random.Random) -> str | None:
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in scene.boxes]
    known = [
        (one, other)
        for one, other in itertools.permutations(range(len(scene)), 2)
        if areas[one] >= _LARGER * areas[other]
    ]
    if not known:
        return None
    one, other = draw.choice(known)
    said = draw.choice(("larger", "smaller"))
    if (said == "smaller") != (fit == "contradicted"):
        one, other = other, one
    names = _names(drawings, scene, fit, draw, one, other)
    return f"the {names[0]} is {said} than the {names[1]}"


def _state_colour(drawings: Drawings, scene: Scene, fit: str, draw: random.Random) -> str | None:
    """States a drawing's colour. A wrong one is as frequent as it is right elsewhere."""
    known = _coloured(drawings, scene)
    if not known:
        return None
    row = draw.choice(known)
    said = drawings.colours[row]
    if fit == "neutral":
        row = _absent_coloured(drawings, scene, draw)
        said = drawings.colours[row if draw.random() < 0.5 else _absent_coloured(drawings, scene, draw)]
    while fit == "contradicted" and said == drawings.colours[row]:
        said = drawings.colours[_absent_coloured(drawings, scene, draw)]
    return f"the {drawings.labels[row]} is {said}"


def _absent_coloured(drawings: Drawings, scene: Scene, draw: random.Random) -> int:
    while True:
        row = _absent(drawings, scene, draw)
        if drawings.colours[row] and not names_colour(drawings.labels[row]):
            return row


def _names(
    drawings: Drawings, scene: Scene, fit: str, draw: random.Random, one: int, other: int
) -> list[str]:
    """Returns two labels; in a neutral statement one of them is of a drawing that is not shown."""
    rows = [scene.rows[one], scene.rows[other]]
    if fit == "neutral":
        rows[draw.randrange(2)] = _absent(drawings, scene, draw)
    return [drawings.labels[row] for row in rows]


_STATED: tuple[Callable[[Drawings, Scene, str, random.Random], str | None], ...] = (
    _state_side,
    _state_size,
    _state_colour,
)
