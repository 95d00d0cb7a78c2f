"""The codebook's loss terms against densities and sums written out by hand."""

import math

import pytest
import torch

from flava_ds.codebook.losses import code_usage, codebook_loss, gumbel_softmax, logit_laplace_nll


def test_logit_laplace_is_a_density():
    """exp(-nll) integrates to 1 over pixel values in (0, 1)."""
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for mean, log_scale in ((0.3, -0.5), (-1.0, 0.2)):
        density = torch.stack([_density(x, mean, log_scale) for x in grid[::2000].tolist()])
        one_by_one = torch.stack([_nll(x, mean, log_scale) for x in grid[::2000].tolist()])
        torch.testing.assert_close(torch.exp(-one_by_one), density, rtol=1e-4, atol=1e-6)
        logit = torch.log(grid / (1 - grid))
        all_densities = torch.exp(-(logit - mean).abs() / math.exp(log_scale)) / (
            2 * math.exp(log_scale) * grid * (1 - grid)
        )
        assert all_densities.mean().item() == pytest.approx(1, abs=1e-3)


def _density(x: float, mean: float, log_scale: float) -> torch.Tensor:
    scale = math.exp(log_scale)
    return torch.tensor(math.exp(-abs(math.log(x / (1 - x)) - mean) / scale) / (2 * scale * x * (1 - x)))


def _nll(x: float, mean: float, log_scale: float) -> torch.Tensor:
    output = torch.tensor([mean, log_scale]).view(1, 2, 1, 1)
    return logit_laplace_nll(torch.full((1, 1, 1, 1), x), output)


def test_first_half_of_the_channels_holds_the_means():
    pixels = torch.rand(2, 3, 4, 4) * 0.8 + 0.1
    right = torch.cat([torch.logit(pixels), torch.full_like(pixels, -3.0)], dim=1)
    wrong = torch.cat([torch.full_like(pixels, -3.0), torch.logit(pixels)], dim=1)
    assert logit_laplace_nll(pixels, right) < logit_laplace_nll(pixels, wrong) - 1


def test_weights_are_spread_over_the_values_of_one_code():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 3, 10, dtype=torch.float64)
    pixels, output = (
        torch.rand(2, 3, 24, 24, dtype=torch.float64) * 0.8 + 0.1,
        torch.zeros(2, 6, 24, 24, dtype=torch.float64),
    )
    loss = codebook_loss(logits, pixels, output, 6.6, 2.0)
    q = logits.softmax(-1)
    kl = (q * (q * 10).log()).sum(-1).mean()
    marginal = q.flatten(0, 2).mean(0)
    usage = (marginal * (marginal * 10).log()).sum()
    torch.testing.assert_close(loss.kl, kl)
    torch.testing.assert_close(loss.usage, usage)
    torch.testing.assert_close(
        loss.total, loss.reconstruction + (6.6 * kl + 2.0 * usage) / 192, check_dtype=False
    )


def test_terms_at_the_extremes():
    pixels, output = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 6, 8, 8)
    even = codebook_loss(torch.zeros(1, 2, 2, 16), pixels, output, 1.0, 1.0)
    assert even.kl.item() == pytest.approx(0, abs=1e-6) and even.usage.item() == pytest.approx(0, abs=1e-6)
    collapsed = torch.zeros(1, 2, 2, 16)
    collapsed[..., 3] = 200.0
    gone = codebook_loss(collapsed, pixels, output, 1.0, 1.0)
    assert gone.kl.item() == pytest.approx(math.log(16)) and gone.usage.item() == pytest.approx(math.log(16))


def test_relaxed_draws_follow_the_softmax():
    """The largest entry is a draw from softmax(logits), at any temperature; low ones are nearly one-hot."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    drawn = gumbel_softmax(logits.expand(20_000, 4), 1 / 16, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.sum(-1), torch.ones(20_000))
    shares = torch.bincount(drawn.argmax(-1), minlength=4) / 20_000
    for share, expected in zip(shares.tolist(), logits.softmax(0).tolist(), strict=True):
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 20_000)
    soft = gumbel_softmax(logits.expand(20_000, 4), 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(soft.argmax(-1), drawn.argmax(-1))
    assert drawn.amax(-1).mean() > 0.9 > soft.amax(-1).mean()


def test_usage_counts():
    perplexity, used = code_usage(torch.tensor([[0, 1], [2, 3]]), 8)
    assert perplexity == pytest.approx(4) and used == 4
    perplexity, used = code_usage(torch.tensor([5, 5, 5]), 8)
    assert perplexity == pytest.approx(1) and used == 1
    perplexity, _ = code_usage(torch.tensor([0, 0, 0, 1]), 8)
    assert perplexity == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
