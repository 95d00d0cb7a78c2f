"""The table of corpora: what each is, its size in the paper, and the function that reads it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flava_ds.config.data import SampleKind
from flava_ds.prepare.annotations import Annotated, Dropped


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One corpus.

    `pairs` (captions or images, as printed) and `words` (mean per caption) are the paper's counts, None where
    it has none.
    """

    name: str
    title: str
    kind: SampleKind
    annotations: str
    reader: str
    pairs: str | None = None
    words: float | None = None
    urls: bool = False
    """Whether the published form has a URL for every image, so that a list for img2dataset can be written."""

    def read(self, paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
        """Reads annotations, always in the same order."""
        module, function = self.reader.split(".")
        return pkgutil.resolve_name(f"flava_ds.prepare.{module}:{function}")(paths)

    def reason_to_drop(self, caption: str, record: Mapping[str, Any]) -> str | None:
        """Judges a sample that img2dataset has downloaded; corpora without their own filter keep all."""
        module = importlib.import_module(f"flava_ds.prepare.{self.reader.split('.')[0]}")
        return module.reason_to_drop(caption, record) if hasattr(module, "reason_to_drop") else None


_OF_THE_PAPER = (
    ("coco", "COCO captions", "captions_train2014.json captions_val2014.json", "0.9 M", 12.4, False),
    ("sbu", "SBU Captions", "sbu-captions-all.json, or the two lists of the archive", "1.0 M", 12.1, True),
    ("localized_narratives", "Localized Narratives", "one .jsonl per data set", "1.9 M", 13.8, False),
    ("cc3m", "Conceptual Captions 3M", "Train_GCC-training.tsv", "3.1 M", 10.3, True),
    ("visual_genome", "Visual Genome", "region_descriptions.json", "5.4 M", 5.1, False),
    ("wit", "Wikipedia Image Text", "wit_v1.train.all-*.tsv.gz", "4.8 M", 12.8, True),
    ("cc12m", "Conceptual Captions 12M", "cc12m.tsv", "11.0 M", 17.3, True),
    ("redcaps", "RedCaps", "the folder annotations/", "11.6 M", 9.5, True),
    ("yfcc100m", "YFCC100M, filtered", "yfcc100m_dataset, plain or .bz2", "30.3 M", 12.7, True),
)
"""Name, title, annotations, pairs, words and whether there are URLs. Source: paper, Table 2."""
_READERS = {name: f"conceptual_captions.read_{name}" for name in ("cc3m", "cc12m")}
"""Of those that flava_ds/prepare/NAME.py does not read."""
CORPORA = {
    corpus.name: corpus
    for corpus in (
        *(
            Corpus(
                name=name,
                title=title,
                kind="pair",
                annotations=annotations,
                reader=_READERS.get(name, f"{name}.read"),
                pairs=pairs,
                words=words,
                urls=urls,
            )
            for name, title, annotations, pairs, words, urls in _OF_THE_PAPER
        ),
        Corpus(
            name="own",
            title="your own pictures and captions",
            kind="pair",
            annotations="a .csv, .tsv or .jsonl with the columns file_name and caption",
            reader="own_table.read",
        ),
        Corpus(
            name="own_text",
            title="your own texts",
            kind="text",
            annotations=".txt, .json or .jsonl files with a text, or folders of them",
            reader="passages.read_own",
        ),
        Corpus(
            name="imagenet",
            title="ImageNet-1k",
            kind="image",
            annotations="the folder train/",
            reader="imagenet.read",
            pairs="1,281,167",
        ),
        Corpus(
            name="ccnews",
            title="CCNews",
            kind="text",
            annotations="folders or files of .json or .jsonl",
            reader="passages.read_ccnews",
        ),
        Corpus(
            name="bookcorpus",
            title="BookCorpus",
            kind="text",
            annotations="books_large_p*.txt, or a folder of books",
            reader="passages.read_bookcorpus",
        ),
    )
}
"""The counts of ImageNet-1k are the size of its training set."""
