"""Geometry against closed forms and torchvision, statistics of the draws, independence of neighbours."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from flava_ds.config import UNCHANGED, ImageTransformConfig
from flava_ds.data.order import sample_seed
from flava_ds.data.transforms import SMALL_SIDE, ImageTransform, center_pixels, draw_boxes

EVERYTHING = ImageTransformConfig(
    crop_scale=(0.5, 1.0),
    horizontal_flip=0.5,
    rotation_degrees=15.0,
    color_jitter=0.5,
    grayscale=0.3,
    invert=0.2,
    edges=0.2,
)
SEEDS = sample_seed(0, 0, 0, np.arange(64))


def smooth(height, width, phase=0.0):
    """A smooth picture, which bilinear and bicubic resampling barely change."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    waves = [
        torch.sin(2 * x / width * 3.1 + phase),
        torch.cos(2 * y / height * 3.1),
        torch.sin(x / width + y / height + phase),
    ]
    return ((torch.stack(waves) + 1) * 127.5).round().to(torch.uint8)


def mixed():
    """Pictures of equal and unequal, small and large sizes."""
    return [
        smooth(*size, phase=i)
        for i, size in enumerate(
            [(20, 20), (20, 20), (64, 64), (200, 170), (20, 20), (64, 64), (33, 48), (200, 170), (7, 5)]
        )
    ]


@pytest.mark.parametrize(
    "config",
    [
        EVERYTHING,
        UNCHANGED,
        ImageTransformConfig(),
        ImageTransformConfig(crop_scale=(1.0, 1.0), horizontal_flip=0.5),
    ],
)
def test_a_picture_does_not_depend_on_the_batch_around_it(config):
    images, transform = mixed(), ImageTransform(config, (16, 24))
    together = transform(images, SEEDS[:9])
    for rows in ([0], [1, 4], [8, 7, 6, 5, 4, 3, 2, 1, 0], [2, 3], [5]):
        alone = transform([images[row] for row in rows], SEEDS[rows])
        for whole, part in zip(together, alone, strict=True):
            assert part.dtype == torch.uint8 and part.shape[1:] == whole.shape[1:]
            assert torch.equal(part, whole[rows])


def test_a_long_batch_equals_its_parts():
    images = [smooth(64, 64, i / 9) for i in range(200)]
    seeds = sample_seed(1, 0, 0, np.arange(200))
    transform = ImageTransform(EVERYTHING, (48,))
    whole = transform(images, seeds)[0]
    for start in range(0, 200, 37):
        assert torch.equal(
            transform(images[start : start + 37], seeds[start : start + 37])[0], whole[start : start + 37]
        )


def test_unchanged_leaves_the_right_size_alone_and_centres_the_rest():
    picture = smooth(16, 16)
    assert torch.equal(ImageTransform(UNCHANGED, (16,))([picture], SEEDS[:1])[0][0], picture)
    wide = smooth(60, 100)
    expected = reference.resize(
        wide[:, :, 20:80], [30, 30], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    assert torch.equal(center_pixels([wide], 30)[0], expected)
    rescaled = reference.center_crop(
        reference.resize(wide, [30], interpolation=InterpolationMode.BICUBIC, antialias=True), [30]
    )
    assert (center_pixels([wide], 30)[0].int() - rescaled.int()).abs().max() <= 3
    assert torch.equal(center_pixels([wide], 30), ImageTransform(UNCHANGED, (30,))([wide], SEEDS[5:6])[0])


@pytest.mark.parametrize("side", [64, SMALL_SIDE, SMALL_SIDE + 40])
def test_crops_show_what_torchvision_crops(side):
    """The small and the large way agree with torchvision's crop and resize of the same box, up to the box's
    rounding to whole pixels.
    """
    config = ImageTransformConfig(crop_scale=(0.5, 0.9))
    images = [smooth(side, side, i) for i in range(6)]
    boxes = draw_boxes(np.full((6, 2), side), SEEDS[:6], config)
    ours = ImageTransform(config, (48,))(images, SEEDS[:6])[0]
    for image, box, view in zip(images, boxes, ours, strict=True):
        top, left, height, width = (int(round(value)) for value in box)
        expected = reference.resized_crop(
            image, top, left, height, width, [48, 48], interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        assert (view.int() - expected.int()).abs().float().mean() < 255 * 2.0 / side


def test_boxes_have_the_asked_area_and_ratio():
    shapes = np.tile([[100, 140]], (4000, 1))
    boxes = draw_boxes(
        shapes,
        sample_seed(0, 0, 0, np.arange(4000)),
        ImageTransformConfig(crop_scale=(0.3, 0.6), crop_ratio=(0.75, 4 / 3)),
    )
    top, left, height, width = boxes.T
    share, ratio = height * width / 14_000, width / height
    assert (
        (top >= 0).all() and (left >= 0).all() and (top + height <= 100).all() and (left + width <= 140).all()
    )
    assert 0.3 <= share.min() and share.max() <= 0.6 and abs(share.mean() - 0.45) < 0.01
    assert 0.75 <= ratio.min() and ratio.max() <= 4 / 3 + 1e-9 and abs(np.log(ratio).mean()) < 0.01
    assert np.corrcoef(top, left)[0, 1] < 0.1 and (left / (140 - width)).std() > 0.25


def test_a_box_that_never_fits_falls_back_to_the_centre():
    boxes = draw_boxes(np.array([[10, 400]]), SEEDS[:1], ImageTransformConfig(crop_scale=(0.9, 0.9)))
    np.testing.assert_allclose(boxes[0], [0.0, (400 - 10 * 4 / 3) / 2, 10.0, 10 * 4 / 3])


@pytest.mark.parametrize("side", [40, 200])
def test_flips_mirror_and_come_as_often_as_asked(side):
    images = [smooth(side, side)] * 64
    plain = ImageTransform(ImageTransformConfig(crop_scale=(1.0, 1.0)), (20,))(images, SEEDS)[0]
    flipped = ImageTransform(ImageTransformConfig(crop_scale=(1.0, 1.0), horizontal_flip=0.5), (20,))(
        images, SEEDS
    )[0]
    mirrored = [
        torch.equal(view, other.flip(-1)) and not torch.equal(view, other)
        for view, other in zip(flipped, plain, strict=True)
    ]
    same = [torch.equal(view, other) for view, other in zip(flipped, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 15 < sum(mirrored) < 49
    always = ImageTransform(ImageTransformConfig(crop_scale=(0.4, 0.8), horizontal_flip=1.0), (20,))(
        images, SEEDS
    )[0]
    never = ImageTransform(ImageTransformConfig(crop_scale=(0.4, 0.8)), (20,))(images, SEEDS)[0]
    assert (always.int() - never.flip(-1).int()).abs().max() <= 1


@pytest.mark.parametrize("side", [96, 192])
def test_rotation_turns_about_the_centre_by_up_to_the_angle(side):
    """A spot right of the centre moves along an arc whose angle stays within the limit and fills it."""
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    unit = side // 24
    image[:, side // 2 - unit : side // 2 + unit, side * 3 // 4 - unit : side * 3 // 4 + unit] = 255
    views = ImageTransform(ImageTransformConfig(crop_scale=(1.0, 1.0), rotation_degrees=20.0), (48,))(
        [image] * 64, SEEDS
    )[0].double()[:, 0]
    line = torch.arange(48) + 0.5 - 24
    mass = views.sum((1, 2))
    x, y = (views.sum(1) * line).sum(1) / mass, (views.sum(2) * line).sum(1) / mass
    angle = torch.rad2deg(torch.atan2(y, x))
    assert (torch.hypot(x, y) - 12).abs().max() < 0.4
    assert 15 < angle.max() < 20.5 and -20.5 < angle.min() < -15 and angle.mean().abs() < 5


def test_both_sizes_show_the_same_crop_and_colours():
    images = [smooth(64, 64, i) for i in range(16)]
    large, small = ImageTransform(
        ImageTransformConfig(crop_scale=(0.3, 0.8), rotation_degrees=10, color_jitter=0.4), (48, 24)
    )(images, SEEDS[:16])
    shrunk = torch.nn.functional.avg_pool2d(large.float(), 2)
    assert (shrunk - small.float()).abs().mean() < 1.5
    assert (shrunk - small.roll(1, 0).float()).abs().mean() > 10


def test_the_smaller_view_of_a_large_picture_comes_from_the_larger_one_and_hardly_differs():
    """Only views whose edge divides the first one's do, and only of large pictures; small ones are rendered
    as if alone.
    """
    noise = torch.randint(-20, 21, (3, 300, 400), generator=torch.Generator().manual_seed(0))
    images = [(smooth(300, 400, i).int() + noise).clamp(0, 255).to(torch.uint8) for i in range(3)] + [
        smooth(64, 64)
    ]
    config = ImageTransformConfig(horizontal_flip=0.5)
    large, half = ImageTransform(config, (64, 32))(images, SEEDS[:4])
    alone = ImageTransform(config, (32,))(images, SEEDS[:4])[0]
    again = torch.nn.functional.interpolate(large, size=(32, 32), mode="bicubic", antialias=True)
    assert (
        torch.equal(half[:3], again[:3])
        and torch.equal(half[3], alone[3])
        and not torch.equal(half[:3], alone[:3])
    )
    assert (half.int() - alone.int()).abs().float().mean() < 1
    assert torch.equal(
        ImageTransform(config, (64, 48))(images, SEEDS[:4])[1],
        ImageTransform(config, (48,))(images, SEEDS[:4])[0],
    )


@pytest.mark.parametrize("side", [64, 150, 300])
def test_reducing_does_not_alias(side):
    """Fine stripes become grey, not a coarse pattern."""
    image = ((torch.arange(side) // 1 % 2) * 255).to(torch.uint8).expand(3, side, side)
    view = ImageTransform(ImageTransformConfig(crop_scale=(0.97, 1.0)), (20,))([image], SEEDS[:1])[0].float()
    assert view.std() < 30 and abs(view.mean() - 127.5) < 8


def test_augmentation_repeats_for_a_seed_and_differs_between_seeds():
    image, transform = smooth(64, 64), ImageTransform(EVERYTHING, (32,))
    first, again = transform([image] * 64, SEEDS)[0], transform([image] * 64, SEEDS)[0]
    assert torch.equal(first, again)
    assert len({view.numpy().tobytes() for view in first}) == 64
