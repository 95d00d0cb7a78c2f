"""What a mismatch borrows: a caption of the same step's global batch, the same however that batch
is split."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from data.shard_files import picture

from flava_ds.data.collate import Collator
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.reader import BatchReader, is_masked
from flava_ds.errors import DataError
from flava_ds.objectives.itm import ImageTextMatchingConfig

WORDS = "red green blue small large cat dog bird house tree over under".split()


@pytest.fixture
def reader_of(make_config, make_shard, tmp_path):
    """Returns a function that builds a reader over pairs with these captions, in order; every pair is
    mismatched unless told otherwise.
    """

    def build(captions, global_batch=6, probability=1.0, shuffle=False, pictures=None):
        members = []
        for number, value in enumerate(captions):
            members.append((f"{number:03d}.webp", pictures[number] if pictures else picture(number)))
            members.append(
                (f"{number:03d}.json", json.dumps({} if value is None else {"captions": value}).encode())
            )
        folder = f"few{len(list(tmp_path.iterdir()))}"
        make_shard(f"{folder}/0.tar", members)
        config = make_config(data={"shuffle": shuffle}, training={"global_batch_size": global_batch})
        config = replace(
            config,
            objectives={
                **config.objectives,
                "itm": ImageTextMatchingConfig(mismatch_probability=probability),
            },
        )
        pairs = replace(config.data.sources["pairs"], shards=str(tmp_path / folder), max_skipped_share=1.0)
        config = config.with_sources({"pairs": pairs})
        return BatchReader(config, IndexedShards(config, "pairs"))

    return build


def texts_of(reader, positions):
    """Reads a batch and its texts back."""
    batch = reader.batch(np.asarray(positions))
    cu = batch["cu_seqlens"].tolist()
    return [
        reader.collator.plan.tokenizer.decode(batch["input_ids"][a:b].tolist())
        for a, b in zip(cu, cu[1:], strict=False)
    ], batch


class Mistaken:
    """Draws of a reader with a mistake in its samples."""

    def __init__(self, draws, mistake) -> None:
        self.draws, self.mistake, self.partners = draws, mistake, draws.partners

    def samples(self, positions, skips):
        return self.mistake(self.draws.samples(positions, skips))


def gone(drawn):
    yield next(drawn)
    raise ValueError("the database is gone")


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (
            lambda drawn: [*drawn][:-1],
            "at position 5 yields no sample; it has to yield one for each position",
        ),
        (
            lambda drawn: [*drawn] * 2,
            "yields more samples than the 6 positions from 0 on that it was asked for",
        ),
        (
            lambda drawn: [sample.text for sample in drawn],
            "at position 0 yields an object of the class str, not a",
        ),
        (
            lambda drawn: (replace(sample, text=None) for sample in drawn),
            "yields a text of the class NoneType, ",
        ),
        (
            lambda drawn: (replace(sample, image=None) for sample in drawn),
            "yields an image of the class NoneType",
        ),
        (
            lambda drawn: (replace(sample, image=sample.image.permute(1, 2, 0)) for sample in drawn),
            r"yields an image of shape \[\d+, \d+, 3\] and torch.uint8, not \[3 H W\] of torch.uint8",
        ),
        (
            lambda drawn: (replace(sample, image=sample.image / 255) for sample in drawn),
            "and torch.float32, not ",
        ),
    ],
)
def test_a_sample_that_no_batch_can_hold_names_its_source_and_position(reader_of, mistake, told):
    reader = reader_of(WORDS)
    reader._opened[0] = Mistaken(reader.draws(), mistake)
    with pytest.raises(DataError, match=f"source 'pairs': its reader IndexedShards .*{told}"):
        reader.batch(np.arange(6))


def test_an_error_of_a_readers_own_code_says_whose_it_is(reader_of):
    reader = reader_of(WORDS)
    reader._opened[0] = Mistaken(reader.draws(), gone)
    with pytest.raises(ValueError, match="the database is gone") as caught:
        reader.batch(np.arange(6, 12))
    assert caught.value.__notes__ == ["source 'pairs': raised by its reader IndexedShards at position 7"]


def test_every_other_position_of_the_steps_global_batch_lends_equally_and_nothing_beyond_it(reader_of):
    reader, counts = reader_of(WORDS), Counter()
    for step in range(200):
        texts, batch = texts_of(reader, range(6 * step, 6 * step + 6))
        own = WORDS[:6] if step % 2 == 0 else WORDS[6:]
        assert (
            set(texts) <= set(own)
            and not any(a == b for a, b in zip(texts, own, strict=True))
            and not batch["itm_labels"].any()
        )
        counts.update(zip(own, texts, strict=True))
    assert len(counts) == 12 * 5
    assert all(abs(count - 20) < 4 * (100 * 0.2 * 0.8) ** 0.5 for count in counts.values())


def test_a_global_batch_reaches_into_the_next_epoch(reader_of):
    texts, _ = texts_of(reader_of(WORDS[:10]), range(6, 12))
    later = [texts_of(reader_of(WORDS[:10]), range(30 * turn + 6, 30 * turn + 12))[0] for turn in range(20)]
    assert set(texts) <= set(words := WORDS[6:10] + WORDS[:2]) and set(sum(later, [])) == set(words)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_is_borrowed_does_not_depend_on_the_micro_batch(reader_of, size):
    reader = reader_of(WORDS, probability=0.5, shuffle=True)
    whole, batch = texts_of(reader, range(12, 18))
    assert 0 < batch["itm_labels"].sum() < 6
    parts = [texts_of(reader, range(start, start + size)) for start in range(12, 18, size)]
    assert sum((texts for texts, _ in parts), []) == whole
    assert sum((part["itm_labels"].tolist() for _, part in parts), []) == batch["itm_labels"].tolist()


def test_a_partner_lends_the_caption_that_it_draws_itself_in_this_epoch(reader_of):
    captions = [[f"{word} {number}" for number in range(4)] for word in WORDS]
    mismatched, matched = (reader_of(captions, shuffle=True, probability=p) for p in (1.0, 0.0))
    for start in range(0, 120, 6):
        own, _ = texts_of(matched, range(start, start + 6))
        assert set(texts_of(mismatched, range(start, start + 6))[0]) <= set(own)


def test_a_sample_that_comes_twice_in_a_step_never_borrows_from_itself(reader_of):
    captions = [[f"{word} {number}" for number in range(4)] for word in WORDS[:3]]
    texts, batch = texts_of(reader_of(captions), range(6))
    assert not batch["itm_labels"].any() and not any(
        text.startswith(word) for text, word in zip(texts, WORDS[:3] * 2, strict=True)
    )


def test_partners_without_a_caption_are_passed_over_and_counted_by_their_own_rank_only(reader_of):
    reader = reader_of(["red", None, None, "cat", None, None])
    for turn in range(10):
        texts, batch = texts_of(reader, [6 * turn])
        assert texts == ["cat"] and batch.read.skipped == {}
    assert texts_of(reader, range(6))[1].read.skipped["missing caption"] >= 4


def test_pictures_of_partners_are_not_looked_at(reader_of):
    broken = reader_of(WORDS[:6], pictures=[picture(0), *[b"not a picture"] * 5])
    for turn in range(10):
        (text,), batch = texts_of(broken, [6 * turn])
        assert text in WORDS[1:6] and batch.read.skipped == {}


def test_after_sixteen_equal_captions_a_sample_stays_matched(reader_of):
    texts, batch = texts_of(reader_of(["red"] * 40 + ["cat"], global_batch=41), range(41))
    borrowed = texts[:40].count("cat")
    assert texts[40] == "red" and batch["itm_labels"].sum() == 40 - borrowed and 6 <= borrowed <= 26
    assert texts_of(reader_of(["red"] * 6), range(6))[1]["itm_labels"].all()
    assert texts_of(reader_of(["red", "cat"], global_batch=1), [0])[1]["itm_labels"].all()


def test_pictures_that_are_held_decoded_are_limited_by_their_bytes(reader_of, monkeypatch):
    """32 of 64 Mi pixels would take 6 GiB; what is held together decides about no pixel."""
    reader = reader_of(["one caption"] * 24, global_batch=24)
    whole = reader.batch(np.arange(24))
    held = []
    augment = Collator.augment
    monkeypatch.setattr(
        Collator,
        "augment",
        lambda own, chunk, views: (held.append(len(chunk)), augment(own, chunk, views))[1],
    )
    monkeypatch.setattr("flava_ds.data.reader.CHUNK_BYTES", 2 * 3 * 16 * 16 + 1)
    parts = reader.batch(np.arange(24))
    assert (
        held == [3] * 8
        and torch.equal(parts["pixel_values"], whole["pixel_values"])
        and parts.keys == whole.keys
    )


def masked_keys(batch) -> list[str]:
    """Keys of the samples that the corruptions see."""
    return [batch.keys[row] for row in batch["masked_samples"].tolist()]


def test_a_masked_share_is_the_same_samples_on_any_number_of_ranks_and_only_those_are_mismatched(reader_of):
    reader = reader_of(WORDS, global_batch=12, probability=1.0)
    reader.plan = replace(reader.plan, masked_share=0.25)
    whole = reader.batch(np.arange(12))
    parts = [reader.batch(np.arange(start, start + 6)) for start in (0, 6)]
    chosen = masked_keys(whole)
    assert len(chosen) == 3 and sum((masked_keys(part) for part in parts), []) == chosen
    assert [len(masked_keys(part)) for part in parts] in ([1, 2], [2, 1])
    assert whole["bool_masked_pos"].shape[0] == 3 and len(whole["masked_cu_seqlens"]) == 4
    matched = whole["matched_rows"].tolist()
    assert [key for row, key in enumerate(whole.keys) if row not in matched] == chosen
    assert not whole["itm_labels"].any() and len(whole["itm_labels"]) == 3 and len(matched) == 9


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5, 0.75])
def test_any_neighbours_hold_their_part_of_the_masked_share(share):
    chosen = is_masked(np.arange(1200), share)
    assert chosen.sum() == round(1200 * share)
    for width in (4, 10, 37):
        counts = np.convolve(chosen, np.ones(width), mode="valid")
        assert counts.min() >= int(width * share)


def test_the_masked_samples_of_a_share_are_masked_as_in_a_whole_batch(reader_of):
    reader = reader_of(WORDS, global_batch=12, probability=0.0)
    whole = reader.batch(np.arange(12))
    reader.plan = replace(reader.plan, masked_share=0.5)
    share = reader.batch(np.arange(12))
    rows = share["masked_samples"].tolist()
    assert len(rows) == 6 and torch.equal(share["bool_masked_pos"], whole["bool_masked_pos"][rows])
    assert torch.equal(share["pixel_values"], whole["pixel_values"])
    ends = whole["cu_seqlens"].tolist()
    texts = [whole["input_ids_masked"][ends[row] : ends[row + 1]] for row in rows]
    assert torch.equal(share["input_ids_masked"], torch.cat(texts))
    assert share["masked_cu_seqlens"].diff().tolist() == [len(text) for text in texts]
    assert share.numbers["masked_max_seqlen"] == max(len(text) for text in texts)
