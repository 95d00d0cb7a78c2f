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


def _pairs(
    name: str, title: str, annotations: str, reader: str, pairs: str, words: float, *, urls: bool = False
) -> Corpus:
    return Corpus(
        name=name,
        title=title,
        kind="pair",
        annotations=annotations,
        reader=reader,
        pairs=pairs,
        words=words,
        urls=urls,
    )


CORPORA = {
    corpus.name: corpus
    for corpus in (
        _pairs(
            "coco",
            "COCO captions",
            "captions_train2014.json captions_val2014.json",
            "coco.read",
            "0.9 M",
            12.4,
        ),
        _pairs(
            "sbu",
            "SBU Captions",
            "sbu-captions-all.json, or the two lists of the archive",
            "sbu.read",
            "1.0 M",
            12.1,
            urls=True,
        ),
        _pairs(
            "localized_narratives",
            "Localized Narratives",
            "one .jsonl per data set",
            "localized_narratives.read",
            "1.9 M",
            13.8,
        ),
        _pairs(
            "cc3m",
            "Conceptual Captions 3M",
            "Train_GCC-training.tsv",
            "conceptual_captions.read_cc3m",
            "3.1 M",
            10.3,
            urls=True,
        ),
        _pairs(
            "visual_genome", "Visual Genome", "region_descriptions.json", "visual_genome.read", "5.4 M", 5.1
        ),
        _pairs(
            "wit", "Wikipedia Image Text", "wit_v1.train.all-*.tsv.gz", "wit.read", "4.8 M", 12.8, urls=True
        ),
        _pairs(
            "cc12m",
            "Conceptual Captions 12M",
            "cc12m.tsv",
            "conceptual_captions.read_cc12m",
            "11.0 M",
            17.3,
            urls=True,
        ),
        _pairs("redcaps", "RedCaps", "the folder annotations/", "redcaps.read", "11.6 M", 9.5, urls=True),
        _pairs(
            "yfcc100m",
            "YFCC100M, filtered",
            "yfcc100m_dataset, plain or .bz2",
            "yfcc100m.read",
            "30.3 M",
            12.7,
            urls=True,
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
"""Source: paper, Table 2; for ImageNet-1k, the size of its training set."""
