"""What is said of scenes holds: every text is read again and compared with the boxes and colours."""

import collections
import re

import pytest
import torch

from flava_ds.demo.scene_texts import (
    ANSWERS,
    FITS,
    SIDES,
    ask,
    captions,
    names_colour,
    sides,
    state,
    with_article,
)
from flava_ds.demo.scenes import Drawings, Scene, draw_scene

LABELS = ("pig", "red heart", "owl", "glasses", "flag of Chad", "hat", "ship", "star")
COLOURS = ("pink", "red", "brown", None, "blue", "red", "grey", "yellow")
SHAPES = ((40, 40), (30, 50), (50, 30), (20, 60), (30, 50), (40, 50), (50, 50), (60, 20))


@pytest.fixture(scope="module")
def drawings() -> Drawings:
    pictures = tuple(torch.zeros(3, *shape, dtype=torch.uint8) for shape in SHAPES)
    return Drawings("toys", pictures, LABELS, LABELS, ("toy",) * len(LABELS), COLOURS)


class Shown:
    """What a reader of a scene knows."""

    def __init__(self, drawings: Drawings, scene: Scene) -> None:
        self.box = {drawings.labels[row]: box for row, box in zip(scene.rows, scene.boxes, strict=True)}
        self.colour = {drawings.labels[row]: drawings.colours[row] for row in scene.rows}

    def is_on(self, side: str, one: str, other: str) -> bool:
        (a, b, c, d), (e, f, g, h) = self.box[one], self.box[other]
        return {
            "left": a + c < e + g,
            "right": a + c > e + g,
            "above": b + d < f + h,
            "below": b + d > f + h,
        }[side]

    def area(self, name: str) -> int:
        x1, y1, x2, y2 = self.box[name]
        return (x2 - x1) * (y2 - y1)

    def holds(self, text: str) -> bool | None:
        """Whether a statement is true, or None if it speaks of something that is not shown."""
        side = re.fullmatch(r"the (.+) is (left of|right of|above|below) the (.+)", text)
        size = re.fullmatch(r"the (.+) is (larger|smaller) than the (.+)", text)
        if side or size:
            one, said, other = (side or size).groups()
            if not {one, other} <= self.box.keys():
                return None
            if side:
                return self.is_on(said.removesuffix(" of"), one, other)
            return (self.area(one) > self.area(other)) == (said == "larger")
        name, colour = re.fullmatch(r"the (.+) is (\w+)", text).groups()
        return self.colour[name] == colour if name in self.box else None

    def answer(self, text: str) -> str:
        """The answer to a question."""
        if found := re.fullmatch(r"how many (\w+ )?drawings are there\?", text):
            colour = (found[1] or "").strip()
            assert not colour or None not in self.colour.values()
            return str(sum(not colour or own == colour for own in self.colour.values()))
        if found := re.fullmatch(r"is there (?:an?|the)? ?(.+)\?", text):
            return "yes" if found[1] in self.box else "no"
        if found := re.fullmatch(r"what colour is the (.+)\?", text):
            return self.colour[found[1]]
        other, one = re.fullmatch(r"on which side of the (.+) is the (.+)\?", text).groups()
        (a, b, c, d), (e, f, g, h) = self.box[one], self.box[other]
        horizontal = abs(a + c - e - g) > abs(b + d - f - h)
        return next(side for side in (SIDES[:2] if horizontal else SIDES[2:]) if self.is_on(side, one, other))


def test_questions_and_statements_agree_with_the_scene(drawings):
    answers, fits, kinds = collections.Counter(), collections.Counter(), collections.Counter()
    for number in range(1200):
        scene = draw_scene(drawings, 0, number)
        shown = Shown(drawings, scene)
        question, said = (make(drawings, scene, f"{number}", number) for make in (ask, state))
        assert question.answer == shown.answer(question.text), question
        assert question == ask(drawings, scene, f"{number}", number)
        assert FITS[{False: 0, None: 1, True: 2}[shown.holds(said.text)]] == said.fit, said
        answers[question.answer] += 1
        kinds[question.kind] += 1
        fits[said.fit, re.sub("the .+? is |the .+", "", said.text).strip() in SIDES] += 1
    assert set(answers) <= set(ANSWERS) and len(ANSWERS) == len(set(ANSWERS)) <= 150
    assert 0.7 < answers["yes"] / answers["no"] < 1.4 and min(kinds.values()) > 250
    assert sum(count for (fit, _), count in fits.items() if fit == "neutral") == 400
    assert all(0.7 < answers[a] / answers[b] < 1.4 for a, b in (("left", "right"), ("above", "below")))


def test_a_statement_s_words_do_not_say_how_it_fits(drawings):
    """Forms are equally frequent for every fit, so that a model has to look."""
    forms = {fit: collections.Counter() for fit in FITS}
    for number in range(3000):
        said = state(drawings, draw_scene(drawings, 1, number), f"{number}", number)
        found = re.search(r" is (left|right|above|below|larger|smaller)", said.text)
        forms[said.fit][found[1] if found else "colour"] += 1
    for form in forms["entailed"]:
        counts = [forms[fit][form] for fit in FITS]
        assert max(counts) - min(counts) < 6 * max(counts) ** 0.5, (form, counts)


def test_sides_of_a_scene_by_hand():
    scene = Scene((0, 1, 2), ((0, 0, 20, 20), (40, 10, 60, 30), (0, 50, 20, 70)))
    # 1 is 40 to the right of 0 and 10 below it; 2 is 50 below 0; 1 and 2 are 40 apart both ways
    assert set(sides(scene, plain=True)) == {
        (0, 1, "left"),
        (1, 0, "right"),
        (0, 2, "above"),
        (2, 0, "below"),
    }
    assert set(sides(scene)) - set(sides(scene, plain=True)) == {
        (1, 2, "right"), (1, 2, "above"), (2, 1, "left"), (2, 1, "below"),
    }  # fmt: skip


def test_captions_name_what_there_is(drawings):
    scene = Scene((0, 1), ((0, 0, 24, 24), (60, 0, 80, 30)))
    found = {text for number in range(200) for text in captions(drawings, scene, f"{number}")}
    pig, heart = ("a pig", "a pink pig"), ("a red heart",)
    assert found == {
        text
        for a in pig
        for b in heart
        for text in (f"{a} left of {b}", f"{b} right of {a}", f"{a} and {b}", f"{b} and {a}")
    }
    assert captions(drawings, scene, "1") == captions(drawings, scene, "1")


def test_articles_and_words_of_colours():
    names = {
        "owl": "an owl", "unicorn": "a unicorn", "glasses": "glasses", "hourglass": "an hourglass",
        "flag of Chad": "the flag of Chad", "bus": "a bus", "ATM sign": "an ATM sign",
        "pair of skis": "a pair of skis",
    }  # fmt: skip
    assert {label: with_article(label) for label in names} == names
    assert with_article("owl", "grey ") == "a grey owl" and with_article("shoes", "red ") == "red shoes"
    assert names_colour("red heart") and names_colour("Blue circle") and not names_colour("redhead")
