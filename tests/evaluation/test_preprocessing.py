"""The transform is Pillow's and torchvision's, to a rounding."""

import numpy as np
import pytest
import torch
from PIL import Image

from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM, DINO_TRANSFORM, Transform


@pytest.mark.parametrize("height, width", [(50, 40), (40, 71), (33, 33), (224, 300), (17, 90)])
@pytest.mark.parametrize("transform, short", [(CLIP_TRANSFORM, 28), (DINO_TRANSFORM, 32)])
def test_pixels_are_those_of_torchvision_on_a_pillow_image(height, width, transform, short):
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    draw = np.random.default_rng(height * width)
    coarse = draw.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    expected = CenterCrop(28)(Resize(short, interpolation=InterpolationMode.BICUBIC)(image))
    found = transform(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), 28)
    assert found.shape == (3, 28, 28) and found.dtype == torch.uint8
    difference = (found.permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.1


def test_a_picture_of_the_right_size_is_left_alone():
    image = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    assert torch.equal(Transform()(image, 28), image)


def test_the_middle_of_a_strip_is_shown_without_enlarging_the_rest():
    strip = torch.zeros(3, 1, 60_000, dtype=torch.uint8)
    strip[:, :, 29_990:30_010] = 255
    assert (Transform()(strip, 28) == 255).all() and Transform()(strip.mT, 28).shape == (3, 28, 28)


def test_a_whole_picture_is_squeezed():
    image = torch.zeros(3, 20, 60, dtype=torch.uint8)
    image[:, :, -30:] = 255
    found = Transform(whole=True)(image, 10)
    assert found.shape == (3, 10, 10) and (found[:, :, :4] == 0).all() and (found[:, :, 6:] == 255).all()
