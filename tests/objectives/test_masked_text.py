"""Token mask statistics within the bounds of the published masks, and the rules that hold for every draw."""

import numpy as np
import pytest
from data.shard_files import PIECES
from hypothesis import given, settings
from hypothesis import strategies as st

from flava_ds.data.order import sample_seed
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.objectives.masked_text import MaskedTextConfig, mask_tokens


def seeds(n, seed=0):
    return sample_seed(seed, 0, 0, np.arange(n))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return WordPieceTokenizer(str(path))


def packed(tokenizer, texts, max_tokens=64):
    encoded = tokenizer.encode_batch(texts, max_tokens)
    return np.concatenate(encoded), np.array([len(ids) for ids in encoded])


@pytest.mark.parametrize("whole_word", [False, True])
def test_shares_are_15_percent_and_80_10_10(tokenizer, whole_word):
    ids, lengths = packed(tokenizer, ["red cat dog house unbelievable tree playing bird small large"] * 4000)
    config = MaskedTextConfig(whole_word=whole_word)
    masked = mask_tokens(seeds(4000), ids, lengths, config, tokenizer)
    ordinary = ~np.isin(ids, tokenizer.special_ids)
    share = len(masked.rows) / ordinary.sum()
    assert abs(share - 0.15) < 0.004 if not whole_word else 0.15 < share < 0.2
    after = masked.input_ids[masked.rows]
    counts = np.array([(after == tokenizer.mask_id).mean(), (after == masked.labels).mean()])
    kept = 0.1 + 0.1 / len(tokenizer.ordinary_ids)
    assert np.abs(counts - [0.8, kept]).max() < 4 * 0.4 / len(masked.rows) ** 0.5


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("abc xyz.", max_size=40), min_size=1, max_size=6),
    st.booleans(),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_rules_hold_for_every_text(tokenizer, texts, whole_word, probability, seed):
    ids, lengths = packed(tokenizer, texts, 24)
    before = ids.copy()
    config = MaskedTextConfig(whole_word=whole_word, mask_probability=probability)
    masked = mask_tokens(seeds(len(texts), seed), ids, lengths, config, tokenizer)
    assert np.array_equal(ids, before)
    assert np.array_equal(masked.labels, ids[masked.rows]) and np.all(np.diff(masked.rows) > 0)
    assert not np.isin(masked.labels, tokenizer.special_ids).any()
    untouched = np.setdiff1d(np.arange(len(ids)), masked.rows)
    assert np.array_equal(masked.input_ids[untouched], ids[untouched])
    assert np.isin(masked.input_ids[masked.rows], [*tokenizer.ordinary_ids, tokenizer.mask_id]).all()
    alone = mask_tokens(seeds(len(texts), seed)[-1:], ids[-lengths[-1] :], lengths[-1:], config, tokenizer)
    assert np.array_equal(alone.input_ids, masked.input_ids[-lengths[-1] :])


def test_whole_words_are_masked_whole_and_at_least_one_per_text(tokenizer):
    texts = ["unbelievable playing cats zebra", "red", "dog house qwerty"]
    ids, lengths = packed(tokenizer, texts * 500)
    config = MaskedTextConfig(whole_word=True, mask_token_share=1.0, random_token_share=0.0)
    masked = mask_tokens(seeds(1500), ids, lengths, config, tokenizer)
    hidden = np.zeros(len(ids), dtype=bool)
    hidden[masked.rows] = True
    continues = tokenizer.continues_word[ids]
    assert np.array_equal(hidden[1:][continues[1:]], hidden[:-1][continues[1:]])
    assert np.add.reduceat(hidden, np.cumsum(lengths) - lengths).min() >= 1


@pytest.mark.parametrize("whole_word", [False, True])
def test_any_share_is_the_cosine_of_a_uniform_number_and_never_none(tokenizer, whole_word):
    ids, lengths = packed(tokenizer, ["red cat dog house tree bird small large"] * 4000)
    config = MaskedTextConfig(masking="any_share", whole_word=whole_word, mask_probability=0.0)
    masked = mask_tokens(seeds(4000), ids, lengths, config, tokenizer)
    counts = np.bincount(masked.rows // lengths[0], minlength=4000)
    assert set(counts) == set(range(1, 9))
    assert abs((counts / 8).mean() - 2 / np.pi) < 0.02


def test_whole_words_are_chosen_evenly(tokenizer):
    """Long words are as likely as short ones: each of four words of the text is hidden equally often."""
    ids, lengths = packed(tokenizer, ["unbelievable cat dog zebra"] * 4000)
    masked = mask_tokens(
        seeds(4000), ids, lengths, MaskedTextConfig(whole_word=True, mask_probability=0.1), tokenizer
    )
    position = masked.rows % lengths[0]
    starts = np.flatnonzero(~tokenizer.continues_word[ids[: lengths[0]]])[1:-1]
    shares = np.array([(position == start).sum() for start in starts]) / 4000
    assert np.abs(shares - 0.25).max() < 4 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize("whole_word", [False, True])
def test_nothing_to_mask_is_legal(tokenizer, whole_word):
    for texts, probability in (([""], 0.15), (["cat dog"], 0.0)):
        ids, lengths = packed(tokenizer, texts)
        masked = mask_tokens(
            seeds(1),
            ids,
            lengths,
            MaskedTextConfig(whole_word=whole_word, mask_probability=probability),
            tokenizer,
        )
        assert len(masked.rows) == len(masked.labels) == 0 and np.array_equal(masked.input_ids, ids)


def test_words_never_reach_across_texts(tokenizer):
    """A text that begins with the rest of a word, packed without special tokens behind another text, is a
    word of its own.
    """
    ids, lengths = (
        np.array([PIECES.index("play"), PIECES.index("red"), PIECES.index("##ing")] * 300),
        np.array([2, 1] * 300),
    )
    masked = mask_tokens(seeds(600), ids, lengths, MaskedTextConfig(whole_word=True), tokenizer)
    hidden = np.isin(np.arange(900), masked.rows).reshape(300, 3)
    assert hidden[:, 2].all() and (hidden[:, :2].sum(1) == 1).all()
