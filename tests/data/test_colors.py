"""Colour maps by hand and their statistics."""

import numpy as np
import torch

from flava_ds.config import ImageTransformConfig
from flava_ds.data.colors import LUMINANCE, apply_colors, draw_colors, outline
from flava_ds.data.order import sample_seed

SEEDS = sample_seed(0, 0, 0, np.arange(2000))
IMAGES = torch.rand(2000, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255


def test_no_change_draws_nothing():
    assert draw_colors(SEEDS, ImageTransformConfig()) is None


def test_invert_and_grayscale_do_what_their_names_say():
    negative = apply_colors(IMAGES, draw_colors(SEEDS, ImageTransformConfig(invert=1.0)))
    torch.testing.assert_close(negative, 255 - IMAGES, atol=1e-3, rtol=0)
    grey = apply_colors(IMAGES, draw_colors(SEEDS, ImageTransformConfig(grayscale=1.0)))
    expected = (IMAGES * torch.tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True).expand_as(IMAGES)
    torch.testing.assert_close(grey, expected, atol=1e-3, rtol=0)
    both = apply_colors(IMAGES, draw_colors(SEEDS, ImageTransformConfig(grayscale=1.0, invert=1.0)))
    torch.testing.assert_close(both, 255 - expected, atol=1e-3, rtol=0)


def test_probabilities_are_met():
    draw = draw_colors(SEEDS, ImageTransformConfig(grayscale=0.3, invert=0.15, edges=0.2))
    negative = draw.shift[:, 0] > 0
    grey = draw.scale.abs().sum((1, 2)) != draw.scale.diagonal(dim1=1, dim2=2).abs().sum(1)
    for drawn, probability in ((negative, 0.15), (grey, 0.3), (draw.edges, 0.2)):
        assert abs(drawn.float().mean() - probability) < 4 * (probability * (1 - probability) / 2000) ** 0.5


def test_jitter_is_a_linear_map_about_the_mean_of_the_asked_strength():
    draw = draw_colors(SEEDS, ImageTransformConfig(color_jitter=0.4))
    out = apply_colors(IMAGES, draw)
    mean = IMAGES.mean((2, 3), keepdim=True)
    expected = (
        torch.einsum("bij,bjhw->bihw", draw.scale.double(), (IMAGES - mean).double())
        + mean
        + draw.shift[:, :, None, None]
    )
    torch.testing.assert_close(out.double(), expected, atol=1e-3, rtol=0)
    assert 35 < draw.shift.abs().max() <= 0.4 * 96
    off_diagonal = draw.scale[:, 0, 1]
    assert 0.19 < off_diagonal.abs().max() <= 0.2 and abs(off_diagonal.mean()) < 0.01
    assert abs(draw.scale[:, 0, 0].mean() - 1) < 0.03


def test_outline_is_dark_at_steps_and_white_elsewhere():
    image = torch.zeros(1, 3, 9, 12)
    image[..., 6:] = 200
    out = outline(image)
    assert out.shape == image.shape
    assert (out[..., 5:7] == 0).all() and (out[..., :5] == 255).all() and (out[..., 7:] == 255).all()
    ramp = torch.arange(12.0).expand(1, 3, 9, 12) * 10
    torch.testing.assert_close(outline(ramp)[0, 0, 1:-1, 1:-1], torch.full((7, 10), 255 - 4 * 80 / 8))


def test_outlines_replace_only_the_drawn_pictures():
    draw = draw_colors(SEEDS, ImageTransformConfig(edges=0.5))
    out = apply_colors(IMAGES, draw)
    torch.testing.assert_close(out[draw.edges], outline(IMAGES[draw.edges]).contiguous(), atol=1e-3, rtol=0)
    torch.testing.assert_close(out[~draw.edges], IMAGES[~draw.edges], atol=1e-3, rtol=0)


def changed(**settings) -> torch.Tensor:
    return apply_colors(IMAGES, draw_colors(SEEDS, ImageTransformConfig(**settings)))


def test_brightness_contrast_and_saturation_are_interpolations():
    grey = (IMAGES * torch.tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)
    blacks = {
        "brightness": torch.zeros_like(IMAGES),
        "contrast": grey.mean((2, 3), keepdim=True),
        "saturation": grey,
    }
    for name, black in blacks.items():
        out = changed(**{name: 0.4})
        factor = ((out - black) / (IMAGES - black)).flatten(1).median(1).values
        expected = black + factor[:, None, None, None] * (IMAGES - black)
        torch.testing.assert_close(out, expected, atol=0.02, rtol=0)
        assert 0.6 <= factor.min() < 0.61 and 1.39 < factor.max() <= 1.4001, name


def test_hue_turns_colours_at_equal_luminance_and_leaves_greys():
    out = changed(hue=0.5)
    weights = torch.tensor(LUMINANCE)[:, None, None]
    torch.testing.assert_close((out * weights).sum(1), (IMAGES * weights).sum(1), atol=0.01, rtol=0)
    assert (out - IMAGES).abs().amax((1, 2, 3)).median() > 50
    grey = torch.full((2000, 3, 2, 2), 77.0)
    draw = draw_colors(SEEDS, ImageTransformConfig(hue=0.5))
    torch.testing.assert_close(apply_colors(grey, draw), grey, atol=0.01, rtol=0)


def test_jitter_leaves_the_share_of_pictures_that_it_should():
    settings = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "color_jitter": 0.3}
    same = ((changed(**settings, jitter_probability=0.8) - IMAGES).abs() < 0.01).flatten(1).all(1)
    assert abs(same.float().mean() - 0.2) < 4 * (0.16 / 2000) ** 0.5
