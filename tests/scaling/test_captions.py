"""Histograms of text lengths and where they come from."""

import json

import numpy as np
import pytest

from flava_ds.errors import DataError, UserError
from flava_ds.recipes import resolve
from flava_ds.scaling.captions import Lengths, full, lengths_of, published
from flava_ds.scaling.facts import Run
from flava_ds.storage.files import CACHE_VARIABLE


def test_published_means_make_17_tokens():
    assert published(77).mean == pytest.approx(12.1 * 1.25 + 2, rel=0.03)
    assert max(published(10).counts) == 10 and full(512).deviation == 0


def test_quantiles_are_spread_as_the_histogram():
    lengths = Lengths({10: 3, 20: 1}, "a test")
    drawn = lengths.quantiles(400)
    assert np.bincount(drawn)[[10, 20]].tolist() == [300, 100]
    assert lengths.mean == 12.5 and lengths.deviation == pytest.approx(drawn.std())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "the histogram of caption lengths is empty"),
        ('{"17": 0}', "is empty; give counts above 0"),
        ('{"pmd": {}}', "is empty"),
        ('{"-3": 1}', "entry '-3': 1 is no length in tokens"),
        ('{"17": -1}', "entry '17': -1"),
        ('{"17": true}', "entry '17': True"),
        ("[1]", "is empty; write"),
        ("{", "not JSON"),
        ('{"pmb": {"17": 1}}', "no source 'pmb' with text; did you mean 'pmd'?"),
    ],
)
def test_bad_histograms_are_one_line(tmp_path, text, message):
    path = tmp_path / "lengths.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message.replace("?", "\\?")):
        lengths_of(resolve("flava_base", []), str(path))


def test_a_file_serves_all_pairs_or_names_a_source(tmp_path):
    config, path = resolve("flava_base", []), tmp_path / "lengths.json"
    path.write_text(json.dumps({"12": 1, "100": 1}))
    found = lengths_of(config, str(path))
    assert found["pmd"].counts == {12: 1.0, 77: 1.0} and found["text"].mean == 512, "cut as the collator does"
    path.write_text(json.dumps({"text": {"100": 5}}))
    found = lengths_of(config, str(path))
    assert found["text"].mean == 100 and found["pmd"].mean > 15
    with pytest.raises(DataError, match="no such file"):
        lengths_of(config, str(tmp_path / "gone.json"))


def test_captions_of_shards_are_tokenised(tmp_path):
    from data.shard_files import write_tar

    texts = ["a dog", "a dog runs on the grass", "two cats"]
    write_tar(tmp_path / "00000.tar", [(f"{n:05d}.txt", text.encode()) for n, text in enumerate(texts)])
    found = lengths_of(resolve("flava_base", []), str(tmp_path))["pmd"]
    assert dict(found.counts) == {4: 2.0, 8: 1.0}


def test_captions_of_unchanged_shards_are_kept(tmp_path, monkeypatch):
    from data.shard_files import write_tar

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    read = []

    def lengths(texts=()):
        if texts:
            write_tar(shard, [(f"{n:05d}.txt", text.encode()) for n, text in enumerate(texts)])
        read.clear()
        run = Run("flava_base", [], [], lambda words: read.append(words) or resolve("flava_base", words))
        return lengths_of(run, str(shard))["pmd"]

    shard = tmp_path / "00000.tar"
    first = lengths(["a dog", "two cats"])
    assert read and first.counts == {4: 2.0}
    assert lengths() == first and not read
    assert lengths(["a dog runs on the grass"]).counts == {8: 1.0} and read
