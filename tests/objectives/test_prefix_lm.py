"""Where texts are cut, and the loss over what follows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flava_ds.batch import Batch
from flava_ds.data.plan import Draft
from flava_ds.objectives.prefix_lm import PrefixLmConfig, PrefixSplit


def cut(lengths, seeds=None):
    """The tensors of a draft whose tokens are numbered from 0."""
    seeds = np.arange(len(lengths), dtype=np.uint64) if seeds is None else seeds
    draft = Draft(
        seeds=seeds,
        matched=np.ones(len(lengths), dtype=bool),
        input_ids=np.arange(sum(lengths)),
        lengths=np.array(lengths),
    )
    return PrefixSplit()(draft)


def test_each_text_is_read_up_to_a_token_and_written_after_it():
    lengths = [2, 9, 5, 30]
    found = cut(lengths)
    written = np.split(found["suffix_rows"], found["suffix_cu_seqlens"][1:-1])
    starts = np.cumsum([0, *lengths])
    read = [
        found["prefix_rows"][(found["prefix_rows"] >= a) & (found["prefix_rows"] < b)]
        for a, b in zip(starts, starts[1:], strict=False)
    ]
    for start, length, prefix, suffix in zip(starts, lengths, read, written, strict=False):
        assert 1 <= len(prefix) < length
        assert [*prefix, *(suffix + 1)] == [*range(start, start + length)], "read or written, each token once"
        assert suffix[0] == prefix[-1], "the decoder begins with the last token that was read"
    assert [len(own) for own in read] == (np.diff(starts) - np.diff(found["suffix_cu_seqlens"])).tolist()


def test_a_cut_depends_on_the_sample_alone():
    whole, alone = cut([7, 8, 6]), cut([8], np.array([1], dtype=np.uint64))
    middle = slice(*whole["suffix_cu_seqlens"][1:3])
    assert (whole["suffix_rows"][middle] - 7).tolist() == alone["suffix_rows"].tolist()


def test_every_prefix_is_equally_likely():
    found = cut([5] * 4000)
    counts = np.bincount(5 - np.diff(found["suffix_cu_seqlens"]))
    assert counts[0] == 0 and counts[5:].size == 0
    assert counts[1:] == pytest.approx(1000, abs=5 * np.sqrt(750)), "five deviations"


class Table:
    """A model that has word embeddings."""

    def word_table(self):
        return torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])


def test_the_loss_is_that_of_the_next_tokens():
    """By hand: logits of (1, 0) are 1, 0, 1, and of (0, 1) 0, 2, 1."""
    objective = PrefixLmConfig().build(None)
    tensors = {"input_ids": torch.tensor([1, 2, 0, 1]), "suffix_rows": torch.tensor([1, 2])}
    batch = Batch(kind="pair", source="x", size=1, tensors=tensors)
    loss = objective(Table(), {"suffix": torch.eye(2)}, batch)
    expected = np.log(2 * np.e + 1) - 1 + np.log(np.e**2 + np.e + 1) - 2
    assert float(loss.sum) == pytest.approx(expected, rel=1e-6)
    assert loss.count == 2 and float(loss.metrics["correct"]) == 2
    logits = torch.eye(2) @ Table().word_table().T
    assert float(F.cross_entropy(logits, torch.tensor([0, 1]), reduction="sum")) == pytest.approx(expected)
