"""Boxes as numbers, and texts and regions in one packed sequence, against loops and numbers by hand."""

import math

import pytest
import torch

from flava_ds.layers.regions import JointLayout, numbers_of_boxes, sines_of_boxes

BOX = torch.tensor([[0.1, 0.2, 0.6, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("count", "numbers"),
    [
        (4, [0.1, 0.2, 0.6, 0.4]),
        (5, [0.1, 0.2, 0.6, 0.4, 0.1]),
        (6, [0.1, 0.2, 0.6, 0.4, 0.5, 0.2]),
        (7, [0.1, 0.2, 0.6, 0.4, 0.5, 0.2, 0.1]),
    ],
)
def test_boxes_are_described_by_the_published_numbers(count, numbers):
    assert numbers_of_boxes(BOX, count)[0].tolist() == pytest.approx(numbers)


def test_sines_are_those_of_percent_of_the_edges():
    found = sines_of_boxes(BOX)[0].tolist()
    for place, percent in enumerate((35.0, 30.0, 50.0, 20.0)):
        for wave in (0, 7, 255):
            angle = percent / 1000 ** (wave / 256)
            assert found[512 * place + wave] == pytest.approx(math.sin(angle), abs=1e-9)
            assert found[512 * place + 256 + wave] == pytest.approx(math.cos(angle), abs=1e-9)


def test_texts_and_regions_of_any_lengths_are_joined_and_found_again():
    texts, regions = [3, 5, 2, 7], [4, 1, 6, 2]
    words = torch.randn(17, 8, requires_grad=True)
    seen = torch.randn(13, 8, requires_grad=True)
    cu = [torch.tensor([0, *own]).cumsum(0).int() for own in (texts, regions)]
    layout = JointLayout(*cu, 9)
    joint = layout.join(words, seen)
    expected = torch.cat(
        [part for pair in zip(words.split(texts), seen.split(regions), strict=True) for part in pair]
    )
    assert torch.equal(joint, expected)
    assert torch.equal(layout.cu_seqlens, torch.tensor([0, 7, 13, 21, 30], dtype=torch.int32))
    assert torch.equal(joint[layout.text_starts], torch.stack([own[0] for own in words.split(texts)]))
    some = torch.tensor([2, 3, 9, 12])
    assert torch.equal(joint[layout.text_rows(some)], words[some])
    assert torch.equal(joint[layout.region_rows(some)], seen[some])
    weights = torch.randn_like(joint)
    found = torch.autograd.grad((joint * weights).sum(), (words, seen))
    for one, other in zip(found, torch.autograd.grad((expected * weights).sum(), (words, seen)), strict=True):
        assert torch.equal(one, other)
