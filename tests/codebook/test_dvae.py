"""The two networks of the codebook against plain torch, written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flava_ds.codebook.dvae import Block, CodebookDecoder, CodebookEncoder, map_pixels, unmap_pixels
from flava_ds.config import CodebookConfig

TINY = CodebookConfig(
    hidden_size=8, num_groups=3, num_blocks_per_group=2, vocab_size=24, image_size=16, decoder_init_size=12
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def plain_block(
    block: Block, hidden: torch.Tensor, padding: tuple[int, int, int, int], gain: float
) -> torch.Tensor:
    residual = hidden
    for pad, conv in zip(padding, (block.conv_1, block.conv_2, block.conv_3, block.conv_4), strict=True):
        residual = F.conv2d(residual.relu(), conv.weight, conv.bias, padding=pad)
    shortcut = (
        hidden
        if isinstance(block.id_path, nn.Identity)
        else F.conv2d(hidden, block.id_path.weight, block.id_path.bias)
    )
    return shortcut + gain * residual


def test_published_parameter_counts():
    with torch.device("meta"):
        assert count(CodebookEncoder(CodebookConfig())) == 53_786_240
        assert count(CodebookDecoder(CodebookConfig())) == 43_829_766


def test_encoder_follows_the_written_out_network():
    torch.manual_seed(0)
    encoder = CodebookEncoder(TINY).double()
    pixels = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    hidden = F.conv2d(pixels, encoder.input.weight, encoder.input.bias, padding=3)
    for number, group in enumerate(encoder.groups):
        for block in group:
            hidden = plain_block(block, hidden, (1, 1, 1, 0), 1 / 36)
        hidden = F.max_pool2d(hidden, 2) if number < 2 else hidden
    expected = F.conv2d(hidden.relu(), encoder.output.weight, encoder.output.bias)
    assert expected.shape == (2, 24, 4, 4)
    torch.testing.assert_close(encoder(pixels), expected)


def test_decoder_upsamples_between_groups_as_dalle_does():
    """The module doubles the grid behind the first 1x1 convolutions; the published order gives the same
    values.
    """
    torch.manual_seed(0)
    decoder = CodebookDecoder(TINY).double()
    weights = torch.rand(2, 24, 4, 4, dtype=torch.float64)
    hidden = F.conv2d(weights, decoder.input.weight, decoder.input.bias)
    for number, group in enumerate(decoder.groups):
        for block in group:
            hidden = plain_block(block, hidden, (0, 1, 1, 1), 1 / 36)
        hidden = F.interpolate(hidden, scale_factor=2, mode="nearest") if number < 2 else hidden
    expected = F.conv2d(hidden.relu(), decoder.output.weight, decoder.output.bias)
    assert expected.shape == (2, 6, 16, 16)
    torch.testing.assert_close(decoder(weights), expected)


def test_embedding_codes_equals_convolving_their_one_hot_vectors():
    torch.manual_seed(0)
    decoder = CodebookDecoder(TINY)
    codes = torch.randint(24, (3, 4, 4))
    one_hot = F.one_hot(codes, 24).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(decoder.embed(codes), decoder.input(one_hot))


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    encoder, decoder = CodebookEncoder(TINY), CodebookDecoder(TINY)
    decoder(encoder(torch.rand(2, 3, 16, 16)).softmax(1)).square().mean().backward()
    for module in (encoder, decoder):
        assert all(
            parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters()
        )


def test_initialisation_has_the_fan_in_scale():
    torch.manual_seed(0)
    encoder = CodebookEncoder(CodebookConfig(hidden_size=64, vocab_size=512))
    weight = encoder.groups[3][1].conv_2.weight
    assert weight.std().item() == pytest.approx((128 * 9) ** -0.5, rel=0.02)
    assert not encoder.output.bias.any()


def test_pixel_margins():
    torch.testing.assert_close(map_pixels(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(
        unmap_pixels(torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0])
    )


def test_upsampling_needs_a_pointwise_first_convolution():
    with pytest.raises(ValueError, match="1x1"):
        Block(8, 8, (3, 3, 3, 1), 4, upsample=True)
