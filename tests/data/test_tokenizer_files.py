"""tokenizer.json as transformers writes it gives transformers' ids, and others are refused."""

import json

import pytest
from data.shard_files import PIECES

from flava_ds.data import tokenizer_files
from flava_ds.data.clip_bpe import SPECIAL_TOKENS, ClipTokenizer, byte_symbols
from flava_ds.data.tokenizer import WordPieceTokenizer, load_tokenizer
from flava_ds.errors import DataError

TEXTS = ["A Red CAT, unbelievable!\tplaying 42.5", "naïve café", "don't", "日本語", ""]


def write_wordpiece(folder, words=PIECES, **settings):
    """Saves transformers' BertTokenizer; returns it with the file."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)}, **settings)
    theirs.save_pretrained(folder)
    return theirs, folder / tokenizer_files.NAME


def write_byte_pairs(folder, reverse=False):
    """Saves transformers' CLIPTokenizer of a few rules, the ids of its entries in order or reversed."""
    transformers = pytest.importorskip("transformers")
    letters = byte_symbols()
    merges = [("a", "t</w>"), ("c", "at</w>"), ("r", "e"), ("re", "d</w>")]
    entries = [*letters, *(f"{own}</w>" for own in letters), *map("".join, merges), *SPECIAL_TOKENS]
    if reverse:
        entries.reverse()
    theirs = transformers.CLIPTokenizer(
        vocab={entry: number for number, entry in enumerate(entries)}, merges=merges
    )
    theirs.save_pretrained(folder)
    return theirs, folder / tokenizer_files.NAME


def encoded(tokenizer):
    return [ids.tolist() for ids in tokenizer.encode_batch(TEXTS, 200)]


def test_word_pieces_get_the_ids_of_transformers_whatever_their_order(tmp_path):
    found = []
    for name, words in (("one", PIECES), ("other", [*PIECES[:5], *reversed(PIECES[5:])])):
        theirs, file = write_wordpiece(tmp_path / name, words)
        ours = load_tokenizer(str(file))
        assert isinstance(ours, WordPieceTokenizer) and ours.vocab_size == len(PIECES)
        assert encoded(ours) == theirs(TEXTS)["input_ids"]
        found.append((encoded(ours), ours.fingerprint()))
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]


def test_case_is_that_of_the_file(tmp_path):
    for name, words, lower in (
        ("small", PIECES, False),
        ("capitals", [*PIECES, "Red"], True),
        ("cased", [*PIECES, "Red"], False),
    ):
        theirs, file = write_wordpiece(tmp_path / name, words, do_lower_case=lower)
        ours = WordPieceTokenizer(str(file))
        assert encoded(ours) == theirs(TEXTS)["input_ids"] and ours.lowercase == lower


def test_byte_pairs_get_the_ids_of_transformers_whatever_their_order(tmp_path):
    found = []
    for reverse in (False, True):
        theirs, file = write_byte_pairs(tmp_path / str(reverse), reverse)
        ours = load_tokenizer(str(file))
        assert isinstance(ours, ClipTokenizer)
        assert encoded(ours) == theirs(TEXTS)["input_ids"]
        found.append(encoded(ours))
    assert found[0] != found[1]
    with pytest.raises(DataError, match=r"holds CLIP's byte pairs, but WordPiece is needed"):
        WordPieceTokenizer(str(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own["model"].update(type="Unigram"), "its model is 'Unigram', and tokenizers here are"),
        (lambda own: own["model"].update(max_input_chars_per_word=9), "max_input_chars_per_word of its Word"),
        (lambda own: own["model"]["vocab"].update(cat=4000), r"ids of its vocabulary are not 0 \.\. "),
        (lambda own: own["model"]["vocab"].update(cat="7"), "not readable as a tokenizer"),
        (lambda own: own["added_tokens"].append({"content": "[NEW]", "id": 4000}), r"adds '\[NEW\]' to its"),
        (lambda own: own["normalizer"].update(strip_accents=False), "in another way than BERT's and CLIP's"),
        (lambda own: own.update(post_processor=None), "in another way than BERT's and CLIP's"),
        (lambda own: own.update(pre_tokenizer={"type": "None of these"}), "not readable as a tokenizer"),
        (lambda own: own.pop("model"), "not readable as a tokenizer"),
    ],
)
def test_what_no_tokenizer_here_reads_is_refused(tmp_path, change, message):
    _, file = write_wordpiece(tmp_path, [*PIECES, "naive", "naïve"])
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(str(file))
    assert "\n" not in str(caught.value)


def test_rules_that_do_not_fit_the_entries_are_refused(tmp_path):
    _, file = write_byte_pairs(tmp_path)
    content = json.loads(file.read_text())
    rules = content["model"]["merges"] = [*map(" ".join, content["model"]["merges"]), "c o"]  # as it was once
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="the rule 'c o' does not join two entries"):
        load_tokenizer(str(file))
    content["model"]["vocab"]["co"] = len(content["model"]["vocab"])
    file.write_text(json.dumps(content))
    assert load_tokenizer(str(file)).merges == [tuple(rule.split()) for rule in rules]
