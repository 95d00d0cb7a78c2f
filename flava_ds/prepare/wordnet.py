"""WordNet's data files: what a word means, which category it is of, and how it is used.

Source: wndb(5WN) and lexnames(5WN), the formats.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flava_ds.prepare.fetch import LabelledText

PARTS = ("noun", "verb", "adj", "adv")
LEXICOGRAPHER_FILES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body "
    "noun.cognition noun.communication noun.event noun.feeling noun.food noun.group noun.location "
    "noun.motive noun.object noun.person noun.phenomenon noun.plant noun.possession noun.process "
    "noun.quantity noun.relation noun.shape noun.state noun.substance noun.time verb.body verb.change "
    "verb.cognition verb.communication verb.competition verb.consumption verb.contact verb.creation "
    "verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather adj.ppl"
).split()
"""In numerical order."""
SHORTEST_DEFINITION, LONGEST_DEFINITION = 3, 30
"""In words, of definitions that are used as texts."""
FITS, OTHER_SENSE = "this sense", "another sense"
SHORT_STEM = 3
"""Letters of words that are looked for whole; longer ones lose their last letter, which endings change."""


@dataclass(frozen=True, kw_only=True)
class Synset:
    """One meaning, with all words that have it."""

    part: str
    offset: str
    words: tuple[str, ...]
    category: str
    definition: str
    uses: tuple[str, ...]
    """Quoted examples."""

    @property
    def is_text(self) -> bool:
        """Says whether the definition has a usual length."""
        return SHORTEST_DEFINITION <= len(self.definition.split()) <= LONGEST_DEFINITION

    def told(self, word: str) -> str:
        """Returns the text that explains one of its words."""
        return f"{word}: {self.definition}"


def read_synsets(folder: Path) -> Iterator[Synset]:
    """Yields the synsets of data.noun, data.verb, data.adj and data.adv in file order."""
    for part in PARTS:
        for line in (folder / f"data.{part}").read_text("utf-8").splitlines():
            if line.startswith("  "):  # every file starts with the licence text
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split(" ")
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            definition, *quoted = re.split(r';\s*(?=")', gloss.strip())
            uses = (re.match(r'"([^"]+)"', each) for each in quoted)
            yield Synset(
                part=part,
                offset=fields[0],
                words=tuple(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words),
                category=LEXICOGRAPHER_FILES[int(fields[1])],
                definition=definition.strip(" ;"),
                uses=tuple(use.group(1) for use in uses if use),
            )


def is_test_word(word: str) -> bool:
    """Says whether a word, with all its meanings, is for testing: one in sixteen, the demo's among them."""
    return _digest(f"test:{word.lower()}").startswith("0")


def word_of(told: str) -> str:
    """Returns the word that a text explains, in lower case; the other direction of `Synset.told`."""
    return told.partition(":")[0].lower()


def glosses(package: Path) -> Iterator[LabelledText]:
    """Reads what each synset's first word means, and its category."""
    for synset in read_synsets(package / "package/dict"):
        if synset.is_text:
            word = synset.words[0]
            yield LabelledText(synset.category, synset.told(word), test=is_test_word(word))


def uses(package: Path) -> Iterator[LabelledText]:
    """Reads examples of words that have several senses with examples, each with the gloss of its own or of
    another sense, in turn by a hash. The other one has examples too, so that a gloss alone tells nothing.
    """
    senses: dict[tuple[str, str], list[Synset]] = defaultdict(list)
    for synset in read_synsets(package / "package/dict"):
        if synset.uses and synset.is_text:
            for word in synset.words:
                senses[synset.part, word.lower()].append(synset)
    seen = set()
    for (part, word), meanings in senses.items():
        for own in meanings:
            others = [each for each in meanings if each.definition != own.definition]
            for use in own.uses if others else ():
                if use in seen or not _names(use, word):
                    continue
                seen.add(use)
                number = int(_digest(f"{part} {word} {use}"), 16)
                shown = own if number % 2 else others[number // 2 % len(others)]
                label = FITS if shown is own else OTHER_SENSE
                yield LabelledText(label, use, second=shown.told(word), test=is_test_word(word))


def _names(use: str, word: str) -> bool:
    """Says whether an example has a word, in whatever form."""
    stem = word if len(word) <= SHORT_STEM else word[:-1]
    return re.search(rf"\b{re.escape(stem)}", use.lower()) is not None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
