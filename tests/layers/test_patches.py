"""Positions on other grids, and pixels in half precision."""

import pytest
import torch
import torch.nn.functional as F

from flava_ds.config.encoders import ConvStemConfig, VisionEncoderConfig
from flava_ds.families.flava.image_encoder import ImageEncoder
from flava_ds.layers.efficientnet import EfficientNet
from flava_ds.layers.patches import PatchEmbedding, resized_positions
from flava_ds.layers.resnet import ResNetStages

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOMENTS = {"image_mean": MEAN, "image_std": STD}


@pytest.mark.parametrize(
    ("mode", "align_corners"), [("bicubic", False), ("bilinear", False), ("bilinear", True)]
)
@pytest.mark.parametrize("grid", [(6, 6), (3, 8), (20, 20), (14, 14)])
def test_positions_are_interpolated_as_torch_does(grid, mode, align_corners):
    table = torch.randn(1 + 14 * 14, 5, dtype=torch.float64, requires_grad=True)
    ours = resized_positions(table, grid, mode=mode, align_corners=align_corners)
    square = table[1:].T.reshape(1, 5, 14, 14)
    theirs = F.interpolate(square, size=grid, mode=mode, align_corners=align_corners).flatten(2)[0].T
    expected = torch.cat([table[:1], theirs])
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(ours)
    ours_gradient, theirs_gradient = (
        torch.autograd.grad((own * weights).sum(), table, retain_graph=True)[0] for own in (ours, expected)
    )
    torch.testing.assert_close(ours_gradient, theirs_gradient)


def test_an_encoder_reads_other_sizes_when_told():
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = ImageEncoder(VisionEncoderConfig(image_size=16, patch_size=4, **shape))
    small, wide = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 32, dtype=torch.uint8)
    assert encoder.first_tokens(small).shape == (2, 8)
    (whole,) = encoder(wide, any_size=True)  # as many patches as the configuration's, on another grid
    assert whole.last_hidden_state().shape == (17, 8)
    with torch.no_grad():
        encoder.position_embeddings[1:] = torch.arange(16.0)[:, None]
        encoder.position_embeddings[1:] *= torch.arange(8.0) - 3
    (moved,) = encoder(wide, any_size=True)
    torch.testing.assert_close(encoder.first_tokens(wide), moved.first())
    assert not torch.allclose(moved.first(), whole.first())
    with pytest.raises(ValueError, match="expects 16 x 16"):
        encoder(small)
    with pytest.raises(ValueError, match="no multiples of 4"):
        encoder(torch.zeros(1, 3, 6, 8, dtype=torch.uint8), any_size=True)


@pytest.mark.parametrize(
    "build",
    [
        lambda: PatchEmbedding(
            VisionEncoderConfig(image_size=8, image_mean=MEAN, image_std=STD, patch_size=4)
        ),
        lambda: ResNetStages(ConvStemConfig(width=4, blocks=(1,), **MOMENTS)),
        lambda: EfficientNet(0.1, 0.1, MEAN, STD, 2),
    ],
)
def test_pixels_are_normalised_by_exact_moments_in_half_precision(build):
    module = build().eval().bfloat16()
    assert torch.equal(module.image_mean, torch.tensor(MEAN))
    assert torch.equal(module.image_std, torch.tensor(STD))
    assert module(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).dtype == torch.bfloat16
