"""Blur against a convolution in fp64, solarisation by hand, and how often each is drawn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flava_ds.config import ImageTransformConfig
from flava_ds.data.filters import apply_filters, draw_filters
from flava_ds.data.order import sample_seed

SEEDS = sample_seed(0, 0, 0, np.arange(2000))


def test_blur_is_a_gaussian_of_the_drawn_width():
    draw = draw_filters(SEEDS, ImageTransformConfig(blur=0.5, blur_sigma=(0.5, 2.0)))
    blurred = draw.weights[:, 0] < 1
    assert blurred.float().mean() == pytest.approx(0.5, abs=4 * (0.25 / 2000) ** 0.5)
    torch.testing.assert_close(draw.weights[:, 0] + 2 * draw.weights[:, 1:].sum(1), torch.ones(2000))
    # w(0) / w(1) = exp(1 / (2 sigma^2))
    sigma = (2 * (draw.weights[blurred, 0] / draw.weights[blurred, 1]).log()).rsqrt()
    assert 0.5 <= sigma.min() < 0.52 and 1.98 < sigma.max() <= 2.0001
    images = torch.rand(6, 3, 9, 14, generator=torch.Generator().manual_seed(0)) * 255
    few = draw.at(np.arange(6))
    kernel = torch.cat([few.weights[:, 1:].flip(1), few.weights], 1).double()
    padded = F.pad(images.double(), (6, 6, 6, 6), "replicate")
    expected = torch.cat(
        [
            F.conv2d(own[:, None], torch.outer(k, k)[None, None]).transpose(0, 1)
            for own, k in zip(padded, kernel, strict=True)
        ]
    )
    out = apply_filters(images, few)
    torch.testing.assert_close(out.double(), expected, atol=1e-3, rtol=0)
    assert torch.equal(out[:1], apply_filters(images[:1], few.at(np.arange(1))))


def test_solarisation_inverts_what_is_bright():
    assert draw_filters(SEEDS, ImageTransformConfig()) is None
    draw = draw_filters(SEEDS, ImageTransformConfig(solarize=0.2))
    assert draw.solarized.float().mean() == pytest.approx(0.2, abs=4 * (0.16 / 2000) ** 0.5)
    image = torch.tensor([-3.0, 0, 127, 128, 200, 255, 300]).expand(1, 3, 1, 7)
    rows = draw.solarized.nonzero().flatten()[:1].numpy()
    assert apply_filters(image, draw.at(rows))[0, 0, 0].tolist() == [0, 0, 127, 127, 55, 0, 0]
