"""The same ids as transformers' CLIPTokenizer and open_clip's SimpleTokenizer; the end of a text survives its
cut.
"""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from flava_ds.data import clip_bpe
from flava_ds.data.clip_bpe import FILE, MERGES, NAME, ClipTokenizer, byte_symbols, merges_file
from flava_ds.data.tokenizer import WordPieceTokenizer, load_tokenizer, vocabulary_file
from flava_ds.errors import ConfigError, DataError

TEXTS = [
    "",
    "a photo of a cat",
    "A Red  CAT, unbelievable!\tplaying 42.5",
    "naïve Ünïcödé café",
    "日本語 and 한국어",
    "don't we're I'LL it's 'quoted' ''s",
    "x" * 400,
    "😀 emoji 🏳️‍🌈",
    "...--- 1234 ab12cd",
    "\n\nnew\u00a0line\u3000wide  ",
    "e\u0301 combining",
]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A file of as many rules as the published one, each joining two bytes: what needs no open_clip."""
    letters = byte_symbols()
    rules = [f"{first} {second}" for first in letters for second in letters][:MERGES]
    path = tmp_path_factory.mktemp("merges") / FILE
    path.write_bytes(gzip.compress("\n".join(["#version", *rules, "left over"]).encode()))
    return str(path)


@pytest.fixture(scope="module")
def published():
    try:
        return load_tokenizer(NAME)
    except DataError as error:
        pytest.skip(f"the published rules are not here: {error}")


def theirs_of(tokenizer):
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPTokenizer(vocab=tokenizer.entries, merges=tokenizer.merges)


@pytest.mark.parametrize(
    "text", [*TEXTS, "\x00\x01 control \u200b", "İstanbul ß ﬁ", "<|endoftext|> spelled out <|startoftext|>"]
)
def test_made_up_rules_give_transformers_ids(made_up, text):
    tokenizer = ClipTokenizer(made_up)
    assert tokenizer.encode_batch([text], 1000)[0].tolist() == theirs_of(tokenizer)(text)["input_ids"]


def test_published_rules_give_transformers_and_open_clip_ids(published):
    theirs, open_clip = theirs_of(published), pytest.importorskip("open_clip").tokenizer.SimpleTokenizer()
    assert (published.vocab_size, published.cls_id, published.sep_id) == (49_408, 49_406, 49_407)
    for text in TEXTS:
        ours = published.encode_batch([text], 1000)[0].tolist()
        assert ours == theirs(text)["input_ids"], text
        assert ours == [open_clip.sot_token_id, *open_clip.encode(text), open_clip.eot_token_id], text
    for text in ("&amp; &lt;b&gt; &amp;amp;", "cats &amp;amp; dogs"):
        ours = published.encode_batch([text], 1000)[0].tolist()
        assert ours == [open_clip.sot_token_id, *open_clip.encode(text), open_clip.eot_token_id], text


@pytest.mark.parametrize("most", [3, 16, 77])
def test_a_cut_text_keeps_its_end(made_up, most):
    """Transformers finds no end in a text cut before it and silently reads row 0."""
    tokenizer = ClipTokenizer(made_up)
    whole = [len(ids) for ids in tokenizer.encode_batch(["a b " * 60, "short"], 1000)]
    ids, cut = tokenizer.encode_counting(["a b " * 60, "short"], most)
    assert [len(own) for own in ids] == [min(length, most) for length in whole]
    assert all(own[0] == tokenizer.cls_id and own[-1] == tokenizer.sep_id for own in ids)
    assert all(np.count_nonzero(own == tokenizer.sep_id) == 1 for own in ids)
    assert cut == sum(whole) - sum(len(own) for own in ids)


def test_entities_are_resolved_as_in_the_published_code(made_up):
    tokenizer = ClipTokenizer(made_up)
    plain, entity, twice = tokenizer.encode_batch(
        ["cats & <b>", "cats &amp; &lt;b&gt;", "cats &amp;amp; &amp;lt;b&gt;"], 77
    )
    assert plain.tolist() == entity.tolist() == twice.tolist()


def test_ids_are_those_of_the_vocab_json_beside_the_rules(made_up, tmp_path):
    plain = ClipTokenizer(made_up)
    rules = tmp_path / "merges.txt"
    rules.write_bytes(gzip.decompress(Path(made_up).read_bytes()))
    assert ClipTokenizer(str(rules)).entries == plain.entries
    turned = {entry: plain.vocab_size - 1 - number for entry, number in plain.entries.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(turned))
    ours = ClipTokenizer(str(rules))
    assert ours.encode_batch(["ab cd"], 9)[0].tolist() == theirs_of(ours)("ab cd")["input_ids"]
    assert ours.cls_id == 1 and ours.fingerprint() != plain.fingerprint()
    for content, message in (
        ("[]", "vocab.json: not readable"),
        ('{"a": 1}', "ids of its vocabulary are not"),
        ('{"a": 0}', "does not join two entries"),
    ):
        (tmp_path / "vocab.json").write_text(content)
        with pytest.raises(DataError, match=message):
            ClipTokenizer(str(rules))


def test_a_tokenizer_travels_to_loader_processes(made_up):
    tokenizer = load_tokenizer(made_up)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert (
        copy.encode_batch(["Some text"], 77)[0].tolist()
        == tokenizer.encode_batch(["Some text"], 77)[0].tolist()
    )
    assert copy.decode(copy.encode_batch(["Some text, 42"], 77)[0]) == "some text , 4 2"


def test_what_is_missing_or_does_not_fit_is_named(made_up, tmp_path, monkeypatch):
    other = tmp_path / "other.txt.gz"
    other.write_bytes(gzip.compress(b"#version\na b\n"))
    with pytest.raises(DataError, match="other.txt.gz: expected 48894 rules"):
        load_tokenizer(str(other))
    other.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="other.txt.gz: not readable"):
        load_tokenizer(str(other))
    with pytest.raises(DataError, match="nowhere.txt.gz': no such file"):
        vocabulary_file("nowhere.txt.gz")
    with pytest.raises(DataError, match="WordPiece is needed"):
        WordPieceTokenizer(made_up)
    with pytest.raises(ConfigError, match="model.text.vocab_size 100 is smaller than the 49408"):
        load_tokenizer(made_up).fitting(100)
    monkeypatch.setattr(clip_bpe.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"install the extra: pip install 'flava_ds\[clip\]'"):
        merges_file()
