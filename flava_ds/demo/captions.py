"""Writes captions for an image of a concept from its label, tags and style."""

import hashlib
import random
from collections.abc import Sequence

from flava_ds.demo.concepts import names_any

MOST_CAPTIONS = 10
FEWEST_CAPTIONS = 6
# A concept with one tag has few distinct captions; this many draws find all of them.
TRIES = 60

WITH_LABEL = (
    "{label}",
    "{look} of {label}",
    "{look} showing {label}, {tag_list}",
    "{label}, {tag_list}",
    "{label}, also {tag_and}",
    "{tag_list}: {label}",
    "this is {label}",
    "{label} drawn as {look}",
    "{label}, {look} about {tag_and}",
    "{look} of {label}; {tag_list}",
    "{label} from the {subgroup} page",
    "{group} {look_noun}: {label}, {tag_list}",
)
WITHOUT_LABEL = ("{look} about {tag_and}", "{tag_list}, {subgroup}")
WITHOUT_LABEL_SHARE = 0.12

COLOUR_LOOKS = (
    "a drawing",
    "a picture",
    "an emoji",
    "a small icon",
    "a colourful icon",
    "a cartoon",
    "a clip art picture",
)
MONOCHROME_LOOKS = (
    "a black drawing",
    "a black and white picture",
    "a black and white icon",
    "an outline",
    "a one-colour symbol",
    "a silhouette",
)


def seeded(key: str) -> random.Random:
    """Returns a generator that depends only on the key, equal in every process and on every machine."""
    return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))


def write_captions(
    key: str, concept: dict, monochrome: bool, forbidden: frozenset[str] = frozenset()
) -> list[str]:
    """Writes 6 to 10 distinct captions of a sample, determined by its key; the first names the concept.

    A caption that happens to contain a forbidden phrase (e.g. "bow and arrow", from two tags) is redrawn.
    """
    draw = seeded(key)
    wanted = draw.randint(FEWEST_CAPTIONS, MOST_CAPTIONS)
    captions: dict[str, None] = {}
    for _ in range(TRIES):
        if len(captions) == wanted:
            break
        nameless = bool(captions) and bool(concept["tags"]) and draw.random() < WITHOUT_LABEL_SHARE
        template = draw.choice(WITHOUT_LABEL if nameless else WITH_LABEL)
        caption = _fill(template, concept, draw, monochrome)
        if not names_any(caption, forbidden):
            captions[caption] = None
    return list(captions)


def _fill(template: str, concept: dict, draw: random.Random, monochrome: bool) -> str:
    label = concept["label"]
    news = [tag for tag in concept["tags"] if tag.lower() != label.lower()] or [
        concept["group"].replace("-", " and ")
    ]
    tags = draw.sample(news, min(len(news), draw.randint(1, 3)))
    look = draw.choice(MONOCHROME_LOOKS if monochrome else COLOUR_LOOKS)
    return template.format(
        label=label,
        look=look,
        look_noun=look.split(" ", 1)[1],
        tag_list=", ".join(tags),
        tag_and=_and(tags),
        group=concept["group"].replace("-", " and "),
        subgroup=concept["subgroup"].replace("-", " "),
    )


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
