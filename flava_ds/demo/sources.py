"""Reads the raw material of the demo data set: Iconify sets, emojibase and openclipart.

Everything here parses a foreign format into a small record; other modules decide what is kept, held out or
rendered.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

COMPONENT_GROUP = 2  # skin-tone and hair swatches: parts of emojis, not concepts
VARIATION_SELECTOR = "-FE0F"  # requests colour; only some sets include it in a hexcode


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji of emojibase, as it is."""

    hexcode: str
    label: str
    unicode_name: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


@dataclass(frozen=True, kw_only=True)
class Icon:
    """One drawing of an Iconify set."""

    name: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """One Iconify set: its drawings by name, and its table from hexcode to name (may be empty)."""

    prefix: str
    author: str
    license: str
    icons: dict[str, Icon]
    name_of_hexcode: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One openclipart file with its author's metadata."""

    path: Path
    category: str
    title: str
    keywords: tuple[str, ...]
    creator: str


def slug(text: str) -> str:
    """Reduces a label or name to lower-case ASCII words joined by hyphens, like Iconify's names."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    ascii_text = ascii_text.replace("&", " and ").replace("#", " hash ").replace("*", " asterisk ")
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['.]", "", ascii_text)).strip("-")


def bare_hexcode(hexcode: str) -> str:
    """Normalises a hexcode to upper case without variation selectors, so that tables agree."""
    return hexcode.upper().replace(VARIATION_SELECTOR, "")


def read_emojis(resources: Path) -> list[Emoji]:
    """Reads emojibase's English labels in its order, without components and regional letters."""
    folder = resources / "node_modules" / "emojibase-data"
    groups = json.loads((folder / "meta" / "groups.json").read_text("utf-8"))
    unicode_names = json.loads((folder / "meta" / "unicode-names.json").read_text("utf-8"))
    emojis = []
    for entry in json.loads((folder / "en" / "data.json").read_text("utf-8")):
        if entry.get("group") in (None, COMPONENT_GROUP):
            continue
        emojis.append(
            Emoji(
                hexcode=entry["hexcode"],
                label=entry["label"],
                unicode_name=unicode_names.get(entry["hexcode"], ""),
                tags=tuple(entry.get("tags", ())),
                group=groups["groups"][str(entry["group"])],
                subgroup=groups["subgroups"][str(entry["subgroup"])],
            )
        )
    return emojis


def read_icon_set(resources: Path, prefix: str) -> IconSet:
    """Reads an Iconify set, without aliases that mirror or rotate their parent."""
    folder = resources / "node_modules" / "@iconify-json" / prefix
    data = json.loads((folder / "icons.json").read_text("utf-8"))
    info = json.loads((folder / "info.json").read_text("utf-8"))
    characters = json.loads((folder / "chars.json").read_text("utf-8"))
    icons = {name: Icon(name=name, svg=_svg_of(entry, data)) for name, entry in data["icons"].items()}
    for alias, entry in data.get("aliases", {}).items():
        if set(entry) == {"parent"} and entry["parent"] in icons:
            icons[alias] = icons[entry["parent"]]
    return IconSet(
        prefix=prefix,
        author=info["author"]["name"],
        license=info["license"]["spdx"],
        icons=icons,
        name_of_hexcode={bare_hexcode(code): name for code, name in characters.items()},
    )


def _svg_of(entry: dict, defaults: dict) -> str:
    """Wraps an Iconify body into a complete SVG; `currentColor` of one-colour sets means black here."""
    box = [entry.get(key, defaults.get(key, fallback)) for key, fallback in _BOX]
    body = entry["body"].replace("currentColor", "#000")
    size = f'viewBox="{box[0]} {box[1]} {box[2]} {box[3]}" width="{box[2]}" height="{box[3]}"'
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {names} {size}>{body}</svg>"


_BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))


def read_drawings(resources: Path) -> Iterator[Drawing]:
    """Yields openclipart's files that have a title, in path order."""
    root = resources / "openclipart" / "usr" / "share" / "openclipart" / "svg"
    for path in sorted(root.rglob("*.svg")):
        if path.is_symlink():
            continue
        try:
            tree = ElementTree.fromstring(path.read_bytes())
        except ElementTree.ParseError:
            continue
        title = _text(tree, "title")
        if title:
            yield Drawing(
                path=path,
                category=path.relative_to(root).parts[0],
                title=title,
                keywords=tuple(_texts(tree, "li")),
                creator=_text(tree, "creator/*/title") or "unknown",
            )


def _path(name: str) -> str:
    """Matches elements in any XML namespace: these files disagree about Dublin Core's."""
    return ".//" + "/".join("*" if part == "*" else "{*}" + part for part in name.split("/"))


def without_addresses(text: str) -> str:
    """Credits people by name: drops mail addresses in brackets, and keeps the user name of bare ones."""
    text = re.sub(r"\s*[\[(<][^\])>]*@[^\])>]*[\])>]", "", text)
    return re.sub(r"(\S+?)@\S+", r"\1", text)


def _texts(tree: ElementTree.Element, name: str) -> list[str]:
    found = (
        without_addresses(" ".join((element.text or "").split())) for element in tree.iterfind(_path(name))
    )
    return [text for text in found if text]


def _text(tree: ElementTree.Element, name: str) -> str:
    return next(iter(_texts(tree, name)), "")
