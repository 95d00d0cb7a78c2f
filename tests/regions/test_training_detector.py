"""Training a detector: it learns what is in front of it, with the same bits each time."""

import dataclasses

import pytest
import torch

from flava_ds.errors import DataError
from flava_ds.regions.detector import Detector, DetectorConfig
from flava_ds.regions.training import DetectorTrainingConfig, Truths, detector_losses, train_detector

CONFIG = DetectorConfig(
    class_names=("red", "blue"), image_size=64, widths=(4, 8, 16), num_blocks=1, feature_size=8
)
TRAINING = DetectorTrainingConfig(total_steps=80, batch_size=8, lr=1e-2, warmup_steps=5)


def squares(step: int, count: int = 8) -> Truths:
    """One red and one blue square a picture, left and right in turn."""
    random = torch.Generator().manual_seed(step)
    pixels, boxes = torch.full((count, 3, 64, 64), 255, dtype=torch.uint8), []
    for number in range(count):
        for color in range(2):
            size, y = (int(torch.randint(a, b, (), generator=random)) for a, b in ((14, 24), (0, 40)))
            x = 34 * ((number + color) % 2) + int(torch.randint(0, 6, (), generator=random))
            pixels[number, :, y : y + size, x : x + size] = torch.tensor([[220, 0, 0], [0, 0, 220]])[
                color
            ].byte()[:, None, None]
            boxes.append([x, y, x + size, y + size])
    return Truths(
        pixels,
        torch.tensor(boxes) / 64,
        torch.tensor([0, 1] * count),
        torch.arange(count).repeat_interleave(2),
    )


def test_the_same_seed_gives_the_same_bits():
    short = dataclasses.replace(TRAINING, total_steps=3)
    prints = [
        train_detector(CONFIG, training, squares).fingerprint()
        for training in (short, short, dataclasses.replace(short, seed=1))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_it_finds_squares_and_tells_their_colours_apart():
    detector = train_detector(CONFIG, TRAINING, squares)
    truths = squares(1000, 20)
    regions = detector(truths.pixels)
    found = 0
    for box, label, image in zip(truths.boxes, truths.labels, truths.images, strict=True):
        rows = slice(regions.cu_seqlens[image] + 1, regions.cu_seqlens[image + 1])
        near = (regions.boxes[rows] - box).abs().amax(1) < 0.08
        found += bool((near & (regions.classes[rows].argmax(1) == label)).any())
    assert found >= 32, found


def test_a_perfect_net_has_no_loss_and_a_moved_box_costs_its_distance():
    """Cells that say the truth: the focal loss vanishes; boxes cost L1 in cells and logarithms."""
    detector, truths = Detector(CONFIG), squares(0, 1)
    cells = torch.full((1, 5, 8, 8), -30.0)
    for x1, y1, x2, y2 in (8 * truths.boxes).tolist():
        column, row = int((x1 + x2) / 2), int((y1 + y2) / 2)
        offset = ((x1 + x2) / 2 - column - 0.5, (y1 + y2) / 2 - row - 0.5)
        size = torch.tensor([(x2 - x1) / 8, (y2 - y1) / 8]).log()
        cells[0, :, row, column] = torch.tensor([30.0, *offset, *size])
    detector.centers = lambda hidden: cells
    losses = detector_losses(detector, truths, 0)
    assert losses["centers"] < 1e-6 and losses["boxes"] < 1e-5
    cells[0, 1] += 0.5  # half a cell to the right
    assert float(detector_losses(detector, truths, 0)["boxes"]) == pytest.approx(0.5, abs=1e-5)
    cells[0, 0] = 0.0  # knows nothing: at a centre -log(1/2) / 4, elsewhere the same, less near a centre
    assert 2 * 0.1733 < float(detector_losses(detector, truths, 0)["centers"]) < 64 / 2 * 0.1733


def test_a_loss_that_is_not_finite_ends_it():
    with pytest.raises(DataError, match="not finite at step .; lower the learning rate"):
        train_detector(CONFIG, dataclasses.replace(TRAINING, lr=1e30), squares)
