"""The same ids as transformers' BertTokenizerFast, and vocabularies that are checked."""

import pickle

import numpy as np
import pytest
from data.shard_files import PIECES
from hypothesis import given, settings
from hypothesis import strategies as st

from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.errors import DataError

FIXED = [
    "",
    "A Red  CAT, unbelievable!\tplaying 42.5",
    "naïve Ünïcödé café",
    "日本語 and 한국어",
    "\x00\x01 control \u200b zero width",
    "[MASK] and [SEP] spelled out",
    "##able ##s",
    "a" * 300,
    "😀 emoji",
    "don't ... stop--now",
    "İstanbul ß ﬁ",
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def peers(file):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizerFast(
        vocab={word: number for number, word in enumerate(PIECES)}, do_lower_case=True
    )
    return WordPieceTokenizer(file), theirs


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=60), st.text("abcde ##.,!'é\n日[]", max_size=60)), min_size=1, max_size=4
    ),
    st.integers(3, 40),
)
def test_random_text_gets_the_ids_of_transformers(peers, texts, max_tokens):
    ours, theirs = peers
    expected = theirs(texts, truncation=True, max_length=max_tokens)["input_ids"]
    assert [ids.tolist() for ids in ours.encode_batch(texts, max_tokens)] == expected


def test_fixed_text_gets_the_ids_and_the_decoding_of_transformers(peers):
    ours, theirs = peers
    encoded = ours.encode_batch(FIXED, 64)
    assert [ids.tolist() for ids in encoded] == theirs(FIXED, truncation=True, max_length=64)["input_ids"]
    assert [ours.decode(ids) for ids in encoded] == [
        theirs.decode(ids, skip_special_tokens=True) for ids in encoded
    ]


def test_a_cased_vocabulary_keeps_case_and_accents(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "apple", "Apple", "##s", "É", "é"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    ours = WordPieceTokenizer(str(tmp_path / "vocab.txt"))
    theirs = transformers.BertTokenizerFast(
        vocab={word: number for number, word in enumerate(words)}, do_lower_case=False
    )
    text = "Apples apple É é APPLE"
    assert ours.encode_batch([text], 20)[0].tolist() == theirs(text)["input_ids"] == [2, 6, 7, 5, 8, 9, 1, 3]
    assert not ours.lowercase


def test_ids_are_cut_framed_and_typed(file):
    tokenizer = WordPieceTokenizer(file)
    (ids,) = tokenizer.encode_batch(["cat " * 50], 10)
    assert ids.dtype == np.int64 and len(ids) == 10
    assert (ids[0], ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id) == (2, 3)
    assert len(tokenizer.encode_batch(["cat " * 50], 40)[0]) == 40
    assert tokenizer.encode_batch([""], 10)[0].tolist() == [2, 3]


def test_what_the_masks_need_is_exposed(file):
    tokenizer = WordPieceTokenizer(file)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id) == (
        len(PIECES),
        0,
        1,
        4,
    )
    assert [PIECES[i] for i in np.flatnonzero(tokenizer.continues_word)] == [
        word for word in PIECES if word.startswith("##")
    ]
    assert sorted([*tokenizer.special_ids, *tokenizer.ordinary_ids]) == list(range(len(PIECES)))
    assert tokenizer.token(5) == PIECES[5]
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (
        again.encode_batch(["playing cats"], 9)[0].tolist()
        == tokenizer.encode_batch(["playing cats"], 9)[0].tolist()
    )


def test_unusable_vocabularies_are_named(tmp_path):
    for words, message in (
        (["a", "b"], r"lacks \[PAD\], \[UNK\]"),
        ([*PIECES, "cat"], "'cat' is listed twice"),
        (["a", "\udcff"], "byte 2 is not UTF-8"),
    ):
        path = tmp_path / "bad.txt"
        path.write_bytes("\n".join(words).encode("utf-8", "surrogateescape"))
        with pytest.raises(DataError, match=message):
            WordPieceTokenizer(str(path))
    with pytest.raises(DataError, match="data.vocabulary 'no_such' is neither"):
        WordPieceTokenizer("no_such")


def test_the_packaged_vocabulary_is_berts():
    tokenizer = WordPieceTokenizer("bert_base_uncased")
    assert (
        tokenizer.vocab_size,
        tokenizer.pad_id,
        tokenizer.unk_id,
        tokenizer.cls_id,
        tokenizer.sep_id,
        tokenizer.mask_id,
    ) == (30522, 0, 100, 101, 102, 103)
    assert tokenizer.encode_batch(["Hello, world!"], 77)[0].tolist() == [101, 7592, 1010, 2088, 999, 102]
    with pytest.raises(DataError, match="did you mean 'bert_base_uncased'"):
        WordPieceTokenizer("bert_base_uncase")


@pytest.mark.parametrize(
    ("max_tokens", "kept", "cut"),
    [(16, [12, 4, 2], 0), (12, [12, 4, 2], 0), (11, [11, 4, 2], 1), (4, [4, 4, 2], 8), (3, [3, 3, 2], 10)],
)
def test_tokens_that_are_cut_off_are_counted(file, max_tokens, kept, cut):
    ids, found = WordPieceTokenizer(file).encode_counting(["red cat " * 5, "red cat", ""], max_tokens)
    assert [len(text) for text in ids] == kept and found == cut
