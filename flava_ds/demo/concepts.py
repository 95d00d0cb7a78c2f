"""Defines concepts, groups them into families, and selects the families that are held out.

Two concepts belong to the same family if

1. their labels are equal without words that only vary an image: gender, colour, size, direction, clock time,
   place of a medal, phase of the moon, anything after a colon (`family_words`); or
2. their drawings differ by less than `NEAR_COPY` in the only set that draws every concept (flags of
   territories, families of three and four, some smiling faces).

Families are held out as a whole. A family is never held out if one of its labels is part of a label of
another family ("cat" in "cat face"): training would see its words.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flava_ds.demo.sources import Emoji, slug

NEAR_COPY = 12.0  # RMS difference of two fingerprints, in grey levels from 0 to 255
HELD_OUT_SHARE = 0.10

_VARIATIONS = frozenset(
    "man woman men women boy girl person people male female child "
    "red orange yellow green blue purple brown black white pink grey light "
    "large medium small "
    "left right up down upwards downwards upward downward clockwise counterclockwise facing "
    "1st 2nd 3rd first second third full new quarter last crescent waxing waning gibbous "
    "open closed raised lowered and".split()
)
_SAME_WORD = {
    "prince": "royalty", "princess": "royalty", "merman": "merperson", "mermaid": "merperson",
    "mrs": "claus", "mx": "claus", "santa": "claus",
    "older": "old", "grandmother": "old", "grandfather": "old",
}  # fmt: skip
_CLOCK = re.compile(r"^(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)-(oclock|thirty)$")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One concept with everything that is decided about it."""

    concept: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    family: str
    hexcode: str
    seen: bool


def plain_label(label: str) -> str:
    """Writes a label as spoken: "flag: France" as "flag of France", "man: beard" as "man with beard"."""
    label = re.sub("[“”]", "", label).replace("’", "'")
    head, colon, tail = label.partition(": ")
    if not colon:
        return label
    if head in ("flag", "family", "kiss", "couple with heart"):
        return f"{head} of {tail}"
    if head == "keycap" or tail.startswith("facing"):
        return f"{head} {tail}"
    return f"{head} with {tail}"


def words_of(text: str) -> str:
    """Reduces a text to lower-case words with spaces on both sides, so that `in` finds whole words.

    Commas, colons and semicolons become a slash: the tags "cold, face" are not the label "cold face".
    """
    parts = (slug(part).replace("-", " ") for part in re.split("[,;:]", text))
    return f" {' / '.join(parts)} "


def family_words(label: str) -> str:
    """Returns the family of a label by rule 1; near-copies are merged afterwards."""
    if label.startswith("flag: "):
        return slug(label)
    if _CLOCK.match(slug(label)):
        return "clock-face"
    if label.startswith("Japanese “"):
        return "japanese-button"
    if label.endswith("(blood type)"):
        return "blood-type-button"
    head = slug(label.partition(":")[0]).split("-")
    kept = dict.fromkeys(_SAME_WORD.get(word, word) for word in head if word not in _VARIATIONS)
    return "-".join(kept) or "person"


def families_of(emojis: list[Emoji], fingerprints: np.ndarray) -> list[str]:
    """Returns the family of every emoji: by equal words first, then near-copies merged under the first name.

    Shapes:
        fingerprints  [concepts, values]  float32
    """
    names = [family_words(emoji.label) for emoji in emojis]
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    squares = (fingerprints**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * fingerprints @ fingerprints.T
    close = distances < NEAR_COPY**2 * fingerprints.shape[1]
    for first, second in np.argwhere(np.triu(close, 1)):
        ours, theirs = root(names[first]), root(names[second])
        parent[max(ours, theirs)] = min(ours, theirs)
    return [root(name) for name in names]


def hash_order(text: str) -> str:
    """Returns a sort key that shuffles texts the same way everywhere."""
    return hashlib.sha256(text.encode()).hexdigest()


def held_out_families(emojis: list[Emoji], families: list[str]) -> set[str]:
    """Selects whole families until a tenth of every group's concepts is held out.

    No family is larger than half of that tenth.
    """
    members: dict[str, list[Emoji]] = {}
    for emoji, family in zip(emojis, families, strict=True):
        members.setdefault(family, []).append(emoji)
    spoken = [
        (family, words_of(plain_label(emoji.label))) for emoji, family in zip(emojis, families, strict=True)
    ]

    def stands_inside_another(family: str) -> bool:
        phrases = forbidden_phrases(plain_label(emoji.label) for emoji in members[family])
        return any(phrase in other for phrase in phrases for name, other in spoken if name != family)

    chosen: set[str] = set()
    for group in dict.fromkeys(emoji.group for emoji in emojis):
        quota = round(HELD_OUT_SHARE * sum(emoji.group == group for emoji in emojis))
        largest = quota // 2
        for family in sorted((name for name in members if members[name][0].group == group), key=hash_order):
            if len(members[family]) <= min(quota, largest) and not stands_inside_another(family):
                chosen.add(family)
                quota -= len(members[family])
    return chosen


def build_concepts(emojis: list[Emoji], fingerprints: np.ndarray) -> list[Concept]:
    """Turns emojis into concepts; a seen concept loses tags that name a held-out one."""
    families = families_of(emojis, fingerprints)
    held_out = held_out_families(emojis, families)
    forbidden = forbidden_phrases(
        plain_label(emoji.label) for emoji, family in zip(emojis, families, strict=True) if family in held_out
    )
    return [
        Concept(
            concept=slug(emoji.label),
            label=plain_label(emoji.label),
            tags=tuple(tag for tag in emoji.tags if family in held_out or not names_any(tag, forbidden)),
            group=emoji.group,
            subgroup=emoji.subgroup,
            family=family,
            hexcode=emoji.hexcode,
            seen=family not in held_out,
        )
        for emoji, family in zip(emojis, families, strict=True)
    ]


def forbidden_phrases(labels: Iterable[str]) -> frozenset[str]:
    """Collects the phrases that no training caption may contain: labels, plurals, countries of flags."""
    phrases = set()
    for label in labels:
        phrases.add(words_of(label))
        phrases.add(words_of(label + "s"))
        if label.startswith("flag of "):
            phrases.add(words_of(label.removeprefix("flag of ")))
    return frozenset(phrases)


def names_any(text: str, phrases: frozenset[str]) -> bool:
    """Returns True if the text contains one of the phrases as whole words."""
    padded = words_of(text)
    return any(phrase in padded for phrase in phrases)
