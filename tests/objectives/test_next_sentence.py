"""Sentence pairs from texts: where they are cut, what is asked, and that only seeds decide."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from flava_ds.config import SourceConfig
from flava_ds.data.collate import Collator
from flava_ds.data.order import sample_seed
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.data.samples import Sample
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.objectives.next_sentence import CaptionPairs, Segments, SentencePairs, cut

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "b", "c", "d", "e", "f", "g", "h", "##a"]
CLS, SEP = 2, 3


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return WordPieceTokenizer(str(tmp_path / "vocab.txt"))


def seeds(count):
    return np.array(sample_seed(0, 0, 0, np.arange(count)), dtype=np.uint64)


def samples_of(texts):
    return [
        Sample(key=str(n), index=n, seed=int(seed), text=texts[n], captions=(texts[n],))
        for n, seed in enumerate(seeds(len(texts)))
    ]


def words_of(ids):
    return " ".join(WORDS[number] for number in ids)


def test_every_sentence_end_is_a_cut_and_texts_of_one_sentence_are_cut_between_words():
    draws = (np.arange(3000) + 0.5) / 3000
    found = Counter(cut("a b. c d! e? f g", draw)[0] for draw in draws)
    assert found == {"a b.": 1000, "a b. c d!": 1000, "a b. c d! e?": 1000}
    assert Counter(cut("a b  c", draw) for draw in draws) == {("a", "b c"): 1500, ("a b", "c"): 1500}
    assert cut("a", 0.9) == ("a", "") and cut("", 0.9) == ("", "")


def test_pairs_are_own_or_borrowed_and_fit(tokenizer):
    texts = ["a b. c d.", "e. f.", "g", "a b c d a b c d. e", "a [SEP] b. c"]
    borrowed = {1: "g h. b.", 2: "a. b.", 3: "h"}
    found, lost = SentencePairs(tokenizer)(samples_of(texts), borrowed, 9)
    assert [words_of(ids) for ids in found] == [
        "[CLS] a b . [SEP] c d . [SEP]",
        "[CLS] e . [SEP] b . [SEP]",
        "[CLS] g [SEP]",
        "[CLS] a b c d a [SEP] h [SEP]",
        "[CLS] a b . [SEP] c [SEP]",
    ]
    assert lost == 4 and all(len(ids) <= 9 for ids in found)


def test_two_captions_of_an_image_are_paired_or_one_is_borrowed(tokenizer):
    one, two, three = samples_of(["a b", "c", "d e"])
    own = [replace(one, captions=("a b", "c d", "g")), two, replace(three, captions=("d e", "h"))]
    found, _ = CaptionPairs(tokenizer)(own, {2: "f"}, 9)
    first, alone, borrowed = map(words_of, found)
    assert first in ("[CLS] a b [SEP] c d [SEP]", "[CLS] a b [SEP] g [SEP]")
    assert (alone, borrowed) == ("[CLS] c [SEP]", "[CLS] d e [SEP] f [SEP]")


def test_segments_and_labels(tokenizer):
    ids, lengths = np.array([CLS, 6, SEP, 7, 8, SEP, CLS, 6, SEP, CLS, 6, 7, SEP, 8, SEP]), [6, 3, 6]
    draft = Draft(
        seeds=seeds(3), matched=np.array([True, False, False]), input_ids=ids, lengths=np.array(lengths)
    )
    made = Segments(SEP)(draft)
    assert made["token_types"].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert made["nsp_samples"].tolist() == [0, 2] and made["nsp_labels"].tolist() == [0, 1]


def test_a_sample_does_not_depend_on_its_neighbours(tokenizer):
    """The whole batch in one piece, and in pieces of one sample."""
    texts = [" ".join(np.random.default_rng(n).choice(WORDS[6:14], 3 + n % 7)) for n in range(40)]
    borrowed = {n: texts[(n + 7) % 40] for n in range(0, 40, 3)}
    plan = BatchPlan(
        kind="text",
        tokenizer=tokenizer,
        max_tokens=8,
        composer=SentencePairs(tokenizer),
        corruptions=(Segments(SEP),),
    )
    collate = Collator(plan, "text", SourceConfig(kind="text", shards="x", max_tokens=8))
    own = samples_of(texts)
    whole = collate(own, borrowed=borrowed)
    parts = [
        collate([sample], borrowed={0: borrowed[n]} if n in borrowed else {}) for n, sample in enumerate(own)
    ]
    for name in ("input_ids", "token_types", "nsp_labels"):
        assert whole[name].tolist() == [value for part in parts for value in part[name].tolist()]
    assert whole["nsp_labels"].sum() == len(borrowed) and whole.read.tokens == len(whole["input_ids"])
    assert whole.read.cut_tokens == sum(part.read.cut_tokens for part in parts) > 0
