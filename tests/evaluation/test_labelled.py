"""Limits are spread over a set, fingerprints follow what is in it, and a picture that cannot be read is
named."""

import numpy as np
import pytest
import torch
from evaluation.color_world import png

from flava_ds.errors import DataError
from flava_ds.evaluation.labelled import CaptionedImages, LabelledImages, LabelledTexts, Seen, limited, spaced
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM, DINO_TRANSFORM


def images(count=12, load=None):
    labels = np.repeat(np.arange(3), count // 3)
    keys = tuple(f"{n}.png" for n in range(count))
    return LabelledImages("colors", keys, load or (lambda row: png("red", row)), labels, ("a", "b", "c"))


def test_rows_are_spaced_evenly():
    assert (
        spaced(10, 4).tolist() == [0, 3, 6, 9]
        and spaced(2, 5).tolist() == [0, 1]
        and spaced(1, 1).tolist() == [0]
    )


def test_a_limit_takes_of_every_class_and_keeps_rows_together():
    some = limited(images(), 6)
    assert len(some) == 6 and set(some.labels) == {0, 1, 2} and limited(images(), 12).keys == images().keys
    rows = [int(key.removesuffix(".png")) for key in some.keys]
    assert [images().labels[row] for row in rows] == some.labels.tolist()
    assert some.load(2) == png("red", rows[2])
    again = limited(some, 3)  # a selection of a selection
    assert again.load(1) == png("red", int(again.keys[1].removesuffix(".png")))
    texts = LabelledTexts("t", ("x", "y", "z"), np.array([0, 1, 0]), ("n", "p"))
    assert limited(texts, 2).texts == ("x", "y") and limited(texts, 2).labels.tolist() == [0, 1]
    captioned = CaptionedImages("c", ("1", "2", "3"), lambda row: b"", (("a",), ("b", "c"), ("d",)))
    assert limited(captioned, 2).captions == (("a",), ("d",)) and limited(captioned, None) is captioned


@pytest.mark.parametrize("limit", [6, 8, 12])
def test_a_limit_takes_of_each_class_its_share_in_any_order(limit):
    """Every second sample of a set whose classes take turns would be of one class."""
    turns, shuffled = np.arange(24) % 2, np.random.default_rng(0).permutation(24) // 6
    for labels in (turns, np.sort(turns), shuffled):
        keys = tuple(f"{n}.png" for n in range(24))
        samples = LabelledImages("colors", keys, lambda row: b"", labels, ("a", "b", "c", "d"))
        some = limited(samples, limit)
        share = np.bincount(labels) * limit / len(labels)
        assert len(some) == limit and np.all(np.abs(np.bincount(some.labels) - share) < 1)
        assert some.keys == tuple(sorted(some.keys, key=keys.index)) == limited(samples, limit).keys


def test_a_fingerprint_follows_samples_labels_and_order():
    first = images()
    other_label = LabelledImages(
        first.name, first.keys, first.load, np.roll(first.labels, 1), first.class_names
    )
    other_order = first.select(np.arange(12)[::-1])
    renamed = LabelledImages("elsewhere", first.keys, lambda row: b"", first.labels, first.class_names)
    assert len({first.fingerprint, other_label.fingerprint, other_order.fingerprint}) == 3
    assert renamed.fingerprint == first.fingerprint


def test_a_picture_is_shown_through_its_transform():
    seen = Seen(images(), CLIP_TRANSFORM)
    batch = seen.batch(range(2, 5), 16)
    assert batch.shape == (3, 3, 16, 16) and batch.dtype == torch.uint8
    assert batch[0, 0].float().mean() == pytest.approx(130, abs=1)
    assert seen == Seen(seen.images, CLIP_TRANSFORM) != Seen(seen.images, DINO_TRANSFORM) and len(seen) == 12
    decoded = torch.full((3, 16, 16), 7, dtype=torch.uint8)
    assert torch.equal(Seen(images(load=lambda row: decoded), CLIP_TRANSFORM).batch(range(1), 16)[0], decoded)


def test_a_picture_that_cannot_be_decoded_is_named():
    with pytest.raises(DataError, match=r"colors: picture '4.png' cannot be used"):
        Seen(images(load=lambda row: b"no picture" if row == 4 else png("red", row)), CLIP_TRANSFORM).batch(
            range(3, 6), 16
        )


@pytest.mark.parametrize("given", [torch.zeros(3, 9, 9), torch.zeros(9, 9, 3, dtype=torch.uint8)])
def test_a_picture_that_a_set_gives_in_another_form_is_named(given):
    """Floats of 0 to 1 would be read as black pictures, and a number would come of them."""
    seen = Seen(images(load=lambda row: given), CLIP_TRANSFORM)
    with pytest.raises(DataError, match=r"colors: picture '0.png': .*; give uint8 \[3, height, width\]"):
        seen.batch(range(1), 16)
