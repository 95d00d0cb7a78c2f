"""Joins the Iconify sets with the concepts and turns every match into a captioned sample."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flava_ds.demo.captions import write_captions
from flava_ds.demo.concepts import Concept, forbidden_phrases, hash_order
from flava_ds.demo.render import encode, render_icon
from flava_ds.demo.shards import Sample, as_json
from flava_ds.demo.sources import Emoji, Icon, IconSet, bare_hexcode, read_icon_set, slug

TRAIN_STYLES = ("noto", "twemoji", "emojione", "emojione-monotone", "fxemoji", "streamline-emojis")
UNSEEN_STYLES = ("fluent-emoji-flat", "fluent-emoji-high-contrast")
MONOCHROME_STYLES = frozenset({"emojione-monotone", "fluent-emoji-high-contrast"})
EVERY_CONCEPT_STYLE = "twemoji"  # the set that draws all concepts, used to find near-copies


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One image of one concept in one style, rendered and captioned."""

    concept: Concept
    style: str
    sample: Sample


def names_of(emoji: Emoji) -> set[str]:
    """Lists possible names of an emoji in a set, without hyphens (fxemoji has none)."""
    names = {slug(emoji.label)}
    if emoji.unicode_name:
        names.add(slug(emoji.unicode_name))
    if emoji.label.startswith("flag: "):
        country = slug(emoji.label.removeprefix("flag: "))
        names |= {f"flag-for-{country}", f"flag-for-flag-{country}", f"{country}-flag"}
    return {name.replace("-", "") for name in names}


def match(icons: IconSet, emojis: list[Emoji]) -> dict[str, list[Icon]]:
    """Finds each emoji's drawings in a set: by hexcode if the set has a table, else by name.

    Some sets have two numbered drawings of an emoji ("artist-1", "artist-2"); both are used.
    """
    by_name: dict[str, dict[str, Icon]] = {}
    for name, icon in sorted(icons.icons.items()):
        for form in {name, re.sub(r"-[12]$", "", name)}:
            by_name.setdefault(form.replace("-", ""), {})[icon.name] = icon
    found = {}
    for emoji in emojis:
        own_name = icons.name_of_hexcode.get(bare_hexcode(emoji.hexcode))
        if own_name in icons.icons:
            found[emoji.hexcode] = [icons.icons[own_name]]
        elif not icons.name_of_hexcode:
            drawings = {
                icon.svg: icon for name in sorted(names_of(emoji)) for icon in by_name.get(name, {}).values()
            }
            if drawings:
                found[emoji.hexcode] = list(drawings.values())
    return found


def build_pairs(resources: Path, emojis: list[Emoji], concepts: list[Concept]) -> Iterator[Pair]:
    """Renders and captions every drawing of every concept, style by style."""
    forbidden = forbidden_phrases(concept.label for concept in concepts if not concept.seen)
    for style in TRAIN_STYLES + UNSEEN_STYLES:
        icons = read_icon_set(resources, style)
        drawings = match(icons, emojis)
        for concept in concepts:
            for number, icon in enumerate(drawings.get(concept.hexcode, [])):
                key = f"{style}_{concept.concept}" + (f"_{number + 1}" if number else "")
                record = describe(key, concept, icons, forbidden if concept.seen else frozenset())
                sample = {
                    "webp": encode(render_icon(icon.svg)),
                    "txt": record["captions"][0].encode(),
                    "json": as_json(record),
                }
                yield Pair(concept=concept, style=style, sample={"key": key, **sample})


def describe(key: str, concept: Concept, icons: IconSet, forbidden: frozenset[str]) -> dict:
    """Composes a pair's metadata; its captions avoid the forbidden phrases."""
    fields = asdict(concept)
    del fields["seen"]
    fields["tags"] = list(concept.tags)
    return {
        **fields,
        "style": icons.prefix,
        "set": f"@iconify-json/{icons.prefix}",
        "license": icons.license,
        "attribution": icons.author,
        "captions": write_captions(key, fields, icons.prefix in MONOCHROME_STYLES, forbidden),
    }


def shuffled(pairs: list[Pair]) -> list[Sample]:
    """Orders samples by a hash of their keys, so that shards mix styles and groups."""
    return [pair.sample for pair in sorted(pairs, key=lambda pair: hash_order(pair.sample["key"]))]
