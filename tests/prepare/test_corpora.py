"""The table of corpora: complete, with functions that exist, and adding up to what the paper says of PMD."""

import inspect
import pkgutil
import sys

import pytest

from flava_ds import prepare
from flava_ds.prepare.corpora import CORPORA

PMD = [corpus for corpus in CORPORA.values() if corpus.kind == "pair" and corpus.pairs]


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=lambda corpus: corpus.name)
def test_reader_exists(corpus):
    reader = pkgutil.resolve_name(f"flava_ds.prepare.{corpus.reader}")
    assert list(inspect.signature(reader).parameters) == ["paths"]


def test_a_reader_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.delattr(prepare, "coco", raising=False)
    monkeypatch.setitem(sys.modules, "flava_ds.prepare.coco", None)
    with pytest.raises(ImportError, match="import of flava_ds.prepare.coco halted"):
        CORPORA["coco"].read([])


def test_the_nine_corpora_are_seventy_million_pairs():
    """Table 2: 70 M pairs, 12.1 words on average, from rounded rows."""
    millions = [float(corpus.pairs.removesuffix(" M")) for corpus in PMD]
    assert len(PMD) == 9 and round(sum(millions)) == 70
    mean = sum(pairs * corpus.words for pairs, corpus in zip(millions, PMD, strict=True)) / sum(millions)
    assert abs(mean - 12.1) < 0.2


def test_only_corpora_with_a_filter_judge_downloaded_captions():
    assert [corpus.name for corpus in PMD if corpus.reason_to_drop("", {"language": "fr"})] == [
        "wit",
        "yfcc100m",
    ]
